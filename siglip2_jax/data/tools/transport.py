"""Speed of the way of batches from workers to devices, with nothing to prepare."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import jax

from siglip2_jax.data.workers.ring import batch_bytes
from siglip2_jax.data.workers.steps import Steps
from siglip2_jax.data.workers.work import Outcome
from siglip2_jax.types import Batch

_WARM = 3


@dataclass(frozen=True)
class Constant:
    """Work that copies one row to all rows of a step, in as many parts as there are workers."""

    row: Batch
    rows: int
    count: int

    def buffer_bytes(self) -> int:
        """Memory of a step's batch."""
        return batch_bytes(self.row, self.rows)

    def parts(self, step: int, /) -> int:
        """Number of parts of a step."""
        return self.count

    def owner(self, step: int, part: int, /) -> int:
        """Number of the worker of a part."""
        return part

    def like(self, step: int, /) -> tuple[Batch, int]:
        """The row, and how often it stands in a batch."""
        return self.row, self.rows

    def fill(self, step: int, part: int, out: Batch, /) -> Outcome:
        """Writes the part's rows."""
        rows = slice(part * self.rows // self.count, (part + 1) * self.rows // self.count)
        for array, row in zip(jax.tree.leaves(out), jax.tree.leaves(self.row), strict=True):
            array[rows] = row
        return Outcome(0, ())


def transport_rate(
    row: Batch,
    rows: int,
    place: Callable[[Batch], Any],
    *,
    workers: int = 2,
    steps: int = 20,
    prefetch: int = 2,
) -> tuple[float, float]:
    """Examples a second that the training process takes from its workers.

    Args:
      row: a batch of one example, as `collate.blank_row` makes it.
      rows: examples of a host's batch.
      place: what is done with each batch, such as to put it on devices.
      workers: number of processes that write batches.
      steps: how many batches to time.
      prefetch: batches that are ready ahead.

    Returns:
      Examples per second of this process's CPU time, and per second of time.
    """
    work, total = Constant(row, rows, max(workers, 1)), _WARM + steps
    cpu = start = 0.0
    slots = prefetch + 1
    with closing(Steps(work, range(total), workers=workers, threads=1, slots=slots)) as source:
        for step in range(total):
            if step == _WARM:
                cpu, start = time.process_time(), time.perf_counter()
            filled = source.take()
            jax.block_until_ready(place(filled.batch))
            source.release(filled.slot)
        cpu, start = time.process_time() - cpu, time.perf_counter() - start
    return steps * rows / max(cpu, 1e-9), steps * rows / start
