"""Counts of what goes wrong with a stage's data, over all processes."""

from __future__ import annotations

import logging

from siglip2_jax.data.pipeline import HostBatch
from siglip2_jax.train.distributed import total

SHOWN = 10  # unusable examples of a stage, from which on their names are no longer logged

log = logging.getLogger(__name__)


class DataCounts:
    """Examples that were replaced and data workers that were started again.

    Attributes:
      bad_before: examples replaced by all processes before the checkpoint that is resumed.
    """

    def __init__(self) -> None:
        """Starts at 0."""
        self.bad_before = 0
        self._bad = self._restarts = 0  # of this process

    def add(self, batch: HostBatch) -> None:
        """Counts what a batch tells, and names the first few examples."""
        if batch.bad and self._bad < SHOWN:
            log.warning("replaced by other examples: %s", " ".join(batch.problems))
        if batch.restarts:
            log.warning("data workers that were lost and started again: %d", batch.restarts)
        self._bad += batch.bad
        self._restarts += batch.restarts

    def bad(self) -> int:
        """Examples of the stage that were replaced so far; every process asks at once."""
        return self.bad_before + total(self._bad)

    def report(self) -> dict[str, float]:
        """Values for the metrics; every process asks at once."""
        restarts = float(total(self._restarts))
        return {"bad_examples": float(self.bad()), "data/worker_restarts": restarts}
