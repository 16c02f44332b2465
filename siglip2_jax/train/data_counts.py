"""Counts of a stage's data, over all processes: what goes wrong, and requests to stores."""

from __future__ import annotations

import dataclasses
import logging

from siglip2_jax.data.pipeline import HostBatch
from siglip2_jax.data.stores.client import Counts
from siglip2_jax.train.distributed import total, totals

SHOWN = 10  # unusable examples of a stage, from which on their names are no longer logged

log = logging.getLogger(__name__)


class DataCounts:
    """Examples that were replaced, data workers that were started again, requests to stores.

    Attributes:
      bad_before: examples replaced by all processes before the checkpoint that is resumed.
    """

    def __init__(self) -> None:
        """Starts at 0."""
        self.bad_before = 0
        self._bad = self._restarts = 0  # of this process
        self._requests = Counts()

    def add(self, batch: HostBatch) -> None:
        """Counts what a batch tells, and names the first few examples."""
        if batch.bad and self._bad < SHOWN:
            log.warning("replaced by other examples: %s", " ".join(batch.problems))
        if batch.restarts:
            log.warning("data workers that were lost and started again: %d", batch.restarts)
        self._bad += batch.bad
        self._restarts += batch.restarts
        self._requests += batch.requests

    def bad(self) -> int:
        """Examples of the stage that were replaced so far; every process asks at once."""
        return self.bad_before + total(self._bad)

    def report(self) -> dict[str, float]:
        """Values for the metrics; every process asks at once."""
        counted = {"bad_examples": self._bad, "data/worker_restarts": self._restarts}
        requests = dataclasses.asdict(self._requests)
        counted |= {f"data/store_{name}": n for name, n in requests.items()}
        values = dict(zip(counted, totals(list(counted.values())), strict=True))
        values["bad_examples"] += self.bad_before
        if not values["data/store_requests"]:
            values = {name: x for name, x in values.items() if not name.startswith("data/store_")}
        return {name: float(x) for name, x in values.items()}
