"""Embeddings and answers in the making: parts that survive an interruption, rows of all hosts."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Sequence

import jax
import numpy as np
from etils import epath
from jax.experimental.multihost_utils import process_allgather
from jaxtyping import Float

from siglip2_jax.outputs import open_output

ROWS_PER_PART = 2048


class Parts:
    """Rows of one call of one process, saved every few thousand, with notes on some of them.

    Attributes:
      notes: in the order of the rows; of embeddings, why an image has none.
    """

    def __init__(self, directory: str | os.PathLike[str] | None, call: int, width: int):
        """Reads what an interrupted evaluation has left.

        Args:
          directory: where the parts are, local or `gs://`; None keeps rows in memory only.
          call: which call of the evaluation this is.
          width: E, the size of a row; 0 where notes say it all.
        """
        self._prefix = f"{jax.process_index():05d}-{call:03d}-"
        self._directory = None if directory is None else epath.Path(directory)
        self._width = width
        self._blocks: list[np.ndarray] = []
        self._new: list[np.ndarray | None] = []
        self._new_notes: list[str] = []
        self.notes: list[str] = []
        self._saved = 0
        if self._directory is not None:
            self._read(self._directory)

    def _read(self, directory: epath.Path) -> None:
        there = directory.iterdir() if directory.is_dir() else ()
        for path in sorted(x for x in there if x.match(f"{self._prefix}*.npz")):
            try:
                with path.open("rb") as file, np.load(file) as part:
                    rows, notes = part["rows"], json.loads(str(part["notes"]))
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                break  # and make it again
            self._blocks.append(rows)
            self._saved += len(rows)
            self.notes += notes

    def __len__(self) -> int:
        """How many rows there are."""
        return self._saved + len(self._new)

    def add(self, row: Float[np.ndarray, " E"] | None, note: str | None) -> None:
        """Takes the next row, which is NaN if None, and a note on it."""
        self._new.append(row)
        if note is not None:
            self._new_notes.append(note)
        if len(self._new) == ROWS_PER_PART:
            self.flush()

    def flush(self) -> None:
        """Writes the rows in memory as one part."""
        if not self._new:
            return
        nothing = np.full(self._width, np.nan, np.float32)
        rows = np.stack([nothing if row is None else row for row in self._new])
        if self._directory is not None:
            path = self._directory / f"{self._prefix}{self._saved:012d}.npz"
            with open_output(path) as file:
                np.savez(file, rows=rows, notes=json.dumps(self._new_notes))
        self._blocks.append(rows)
        self._saved += len(rows)
        self.notes += self._new_notes
        self._new, self._new_notes = [], []

    def rows(self) -> Float[np.ndarray, "n E"]:
        """All rows that were flushed; NaN where there was none."""
        return np.concatenate([np.zeros((0, self._width), np.float32), *self._blocks])


def gather_blocks(own: Float[np.ndarray, "k E"], total: int, size: int) -> Float[np.ndarray, "n E"]:
    """The rows of all processes in order, where process p of P has made blocks p, p + P, ...

    Args:
      own: rows of this process; every process has some part of the same call.
      total: n, the number of rows of all; what fills up the last round is cut off.
      size: rows of a block.
    """
    processes = jax.process_count()
    if processes == 1 or not total:
        return own
    rounds = -(-total // (size * processes))
    filled = np.full((rounds * size, own.shape[1]), np.nan, np.float32)
    filled[: len(own)] = own
    everyone = process_allgather(filled).reshape(processes, rounds, size, -1)
    return everyone.transpose(1, 0, 2, 3).reshape(-1, own.shape[1])[:total]


def gather_texts(own: Sequence[str]) -> list[str]:
    """The texts of all processes, process by process."""
    if jax.process_count() == 1:
        return list(own)
    data = np.frombuffer(json.dumps(list(own)).encode(), np.uint8)
    lengths = process_allgather(np.array(len(data))).reshape(-1)
    filled = np.pad(data, (0, int(lengths.max()) - len(data)))
    everyone = process_allgather(filled).reshape(len(lengths), -1)
    parts = (row[:n].tobytes() for row, n in zip(everyone, lengths, strict=True))
    return [text for part in parts for text in json.loads(part)]
