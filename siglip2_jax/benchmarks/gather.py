"""Rows and texts of all processes, brought together on each."""

from __future__ import annotations

import json
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jaxtyping import Float


def gather_blocks(
    rows: Float[np.ndarray, "k E"], total: int, size: int
) -> Float[np.ndarray, "n E"]:
    """The rows of all processes in order, where process p of P computes blocks p, p + P, ...

    Args:
      rows: rows of this process; every process has some part of the same call.
      total: n, the number of rows of all; padding after them is cut off.
      size: rows of a block.
    """
    processes = jax.process_count()
    if processes == 1 or not total:
        return rows
    rounds = -(-total // (size * processes))
    filled = np.full((rounds * size, rows.shape[1]), np.nan, np.float32)
    filled[: len(rows)] = rows
    all_rows = process_allgather(filled).reshape(processes, rounds, size, -1)
    return all_rows.transpose(1, 0, 2, 3).reshape(-1, rows.shape[1])[:total]


def gather_texts(texts: Sequence[str]) -> list[str]:
    """The texts of all processes, process by process."""
    if jax.process_count() == 1:
        return list(texts)
    data = np.frombuffer(json.dumps(list(texts)).encode(), np.uint8)
    lengths = process_allgather(np.array(len(data))).reshape(-1)
    filled = np.pad(data, (0, int(lengths.max()) - len(data)))
    all_data = process_allgather(filled).reshape(len(lengths), -1)
    parts = (row[:n].tobytes() for row, n in zip(all_data, lengths, strict=True))
    return [text for part in parts for text in json.loads(part)]
