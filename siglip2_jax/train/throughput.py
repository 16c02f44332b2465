"""How fast training goes, and how much of the time it waits for data."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import jax

from siglip2_jax.models.variants import ModelConfig
from siglip2_jax.train.chips import find_chip
from siglip2_jax.train.flops import contrastive_flops, training_flops

T = TypeVar("T")


class Throughput:
    """Counts work between two reports."""

    def __init__(self, model: ModelConfig, trainable: Iterable[str]):
        """Starts the clock.

        Args:
          model: sizes.
          trainable: paths of trainable parameters; a tower without any runs forward only.
        """
        self._model = model
        towers = {path.split("/")[0] for path in trainable}
        self._frozen = tuple(tower for tower in ("vision", "text") if tower not in towers)
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
        """The items, counting the time each lets one wait."""
        iterator = iter(items)
        while True:
            start = time.perf_counter()
            item = next(iterator, None)
            self._waited += time.perf_counter() - start
            if item is None:
                return
            yield item

    def count(self, budget: int, batch_size: int) -> None:
        """Counts one step."""
        tokens = self._model.vision.num_patches or budget
        self._examples += batch_size
        self._flops += batch_size * training_flops(self._model, tokens, self._frozen)
        self._flops += 3 * contrastive_flops(batch_size, self._model.text.embed_dim)

    def report(self) -> dict[str, float]:
        """Rates since the last report: examples per second, in all and per device, the share of
        the time spent waiting for data, and MFU (the share of the devices' peak that the model's
        analytic FLOPs use) where the device's peak is known.
        """
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        rate = self._examples / elapsed
        found = {
            "examples_per_s": rate,
            "examples_per_s_per_chip": rate / jax.device_count(),
            "data_wait": self._waited / elapsed,
        }
        if self._peak:
            found["mfu"] = self._flops / elapsed / self._peak
        self.restart()
        return found
