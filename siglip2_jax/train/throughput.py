"""Throughput of training, and the share of time that it waits for data.

`data_wait` is the fraction of loop time spent waiting for batches. It bounds the idle time of the
device but does not equal it: steps that were dispatched earlier run meanwhile, so that data which
is slightly too slow makes the loop wait nearly always and the device hardly ever. To see idle time,
compare `examples_per_s_per_chip` with the rate that `siglip2 plan` estimates. On a CPU the step and
the preparation of data share the cores, and a fraction above 0 only shows that both need them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import jax

from siglip2_jax.train.chips import find_chip

T = TypeVar("T")


class Throughput:
    """Counts work between two reports."""

    def __init__(self) -> None:
        """Starts the clock."""
        device = jax.devices()[0]
        chip = find_chip(device.device_kind)
        self._peak = chip.flops * jax.device_count() if chip else None
        self.restart()

    def restart(self) -> None:
        """Forgets what was counted, such as after a pause that is no training."""
        self._start = time.perf_counter()
        self._examples = self._flops = 0
        self._waited = 0.0

    def waiting(self, items: Iterable[T]) -> Iterator[T]:
        """Yields the items, and counts the time spent waiting for each."""
        iterator = iter(items)
        while True:
            start = time.perf_counter()
            item = next(iterator, None)
            self._waited += time.perf_counter() - start
            if item is None:
                return
            yield item

    def count(self, batch_size: int, flops: int) -> None:
        """Counts one step and its analytic FLOPs."""
        self._examples += batch_size
        self._flops += flops

    def report(self) -> dict[str, float]:
        """Rates since the last report: examples per second, the wait for data, and MFU.

        Examples per second are in all and per device; the wait is a share of the time. MFU, the
        share of the devices' peak that the model's analytic FLOPs use, needs a known peak.
        """
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        rate = self._examples / elapsed
        rates = {
            "examples_per_s": rate,
            "examples_per_s_per_chip": rate / jax.device_count(),
            "data_wait": self._waited / elapsed,
        }
        if self._peak:
            rates["mfu"] = self._flops / elapsed / self._peak
        self.restart()
        return rates
