"""Raw examples of a run by global index, without end: in random order, in blocks or one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from math import ceil
from threading import Lock
from typing import Any, cast

import grain
import numpy as np

from siglip2_jax.data.blocks.layout import Layout
from siglip2_jax.data.blocks.order import BlockOrder, Draws
from siglip2_jax.data.blocks.shuffle import LEAST_WINDOW
from siglip2_jax.data.blocks.windows import Readers, Windows
from siglip2_jax.data.patience import PATIENCE
from siglip2_jax.data.sources import Blocked, Examples, Mixture, Source

# Replacements in full shuffle are drawn from the first so many indices.
_REPLACEMENTS = 2**40
# One thread of a process makes what its stream needs there.
_STARTING = Lock()


class WholeStream:
    """Examples in full shuffle, or in order: any index may be any example. Picklable."""

    def __init__(
        self, source: Source | Mixture, opened: Sequence[Examples], seed: int, shuffle: bool
    ) -> None:
        self._dataset = _dataset(source, iter(opened), seed, shuffle)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        return cast(dict[str, Any], self._dataset[index])  # grain allows for missing ones

    def near(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Any other example."""
        return self[int(rng.integers(_REPLACEMENTS))]

    def using(self, i: int, part: int) -> AbstractContextManager[None]:
        """Nothing to hold."""
        return nullcontext()

    def close(self) -> None:
        """Nothing to end."""


def _dataset(
    source: Source | Mixture, opened: Iterator[Examples], seed: int, shuffle: bool
) -> grain.MapDataset:
    """An endless data set of raw examples by global index; takes its sources from `opened`."""
    if isinstance(source, Mixture):
        parts = [
            _dataset(part, opened, its_seed, shuffle)
            for (part, _), its_seed in zip(source.parts, _seeds(source, seed), strict=True)
        ]
        return grain.MapDataset.mix(parts, weights=[weight for _, weight in source.parts])
    examples: Any = next(opened)  # grain's type is not `Examples`
    dataset = grain.MapDataset.source(examples).seed(seed)
    return (dataset.shuffle() if shuffle else dataset).repeat()


def _seeds(source: Mixture, seed: int) -> list[int]:
    """Seeds of the parts, each its own, or parts of the same length would be shuffled alike."""
    return np.random.SeedSequence(seed).generate_state(len(source.parts)).tolist()


class BlockStream:
    """Examples in the order of `BlockOrder`, read ahead in blocks. Picklable until it is used.

    Index q * L + l is example q of lane l. Sources that are not `Blocked` are read one by one,
    when they are needed.
    """

    def __init__(
        self,
        source: Source | Mixture,
        opened: Sequence[Examples],
        seed: int,
        layout: Layout,
        window: int,
        cache: str | None = None,
        patience: float = PATIENCE,
    ) -> None:
        """A stream.

        Args:
          source: where examples come from.
          opened: each of its sources, in the order in which the mixture names them.
          seed: of the order.
          layout: what of it is read here.
          window: blocks of a lane that are permuted together, in all sources together.
          cache: a local directory for blocks that are held; None for memory.
          patience: seconds for which reading goes on after errors that may pass.
        """
        assert layout.lanes is not None
        self._layout, self._lanes = layout, layout.lanes
        self._cache, self._patience = cache, patience
        self._opened, self._shares, self._orders = list(opened), [], []
        self._draws = self._plan(source, iter(opened), seed, 1.0, window)
        self._running: _Running | None = None

    def _plan(
        self,
        source: Source | Mixture,
        opened: Iterator[Examples],
        seed: int,
        share: float,
        window: int,
    ) -> Draws | int:
        """Orders of the sources, and how lanes draw from them; a single one is its number."""
        if isinstance(source, Mixture):
            weights = [weight for _, weight in source.parts]
            parts = [
                self._plan(part, opened, its_seed, share * weight / sum(weights), window)
                for (part, weight), its_seed in zip(source.parts, _seeds(source, seed), strict=True)
            ]
            return Draws.weighted(tuple(parts), weights, self._lanes, seed)
        examples = next(opened)
        size = examples.block_size if isinstance(examples, Blocked) else 1
        width = max(min(LEAST_WINDOW, window), ceil(window * share))
        self._orders.append(BlockOrder(len(examples), size, self._lanes, width, seed))
        self._shares.append(share)
        return len(self._orders) - 1

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_running": None}

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        return self._read(*self._locate(index))

    def near(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Another example of the same window of the same source."""
        source, lane, key = self._locate(index)
        keys = self._orders[source].window_of(lane, key)
        return self._read(source, lane, int(rng.integers(keys.start, keys.stop)))

    @contextmanager
    def using(self, i: int, part: int) -> Iterator[None]:
        """Holds what a piece needs, reads ahead for later steps, frees what earlier ones needed."""
        state, keys, step = self._state(), self._layout.keys(i), self._layout.each(i)
        with state.lock:
            begun, state.begun = state.begun, True
            state.active.append((part, keys.start))
            first = min(start for its_part, start in state.active if its_part == part)
        its = range(part % self._layout.workers, self._layout.parts, self._layout.workers)
        for its_part in [part] if begun else its:
            for lane in self._layout.lanes_of(its_part):
                self._advance(state, lane, first, step)
        try:
            yield
        finally:
            with state.lock:
                state.active.remove((part, keys.start))

    def close(self) -> None:
        """Stops reading ahead."""
        if self._running:
            self._running.readers.close()

    def _locate(self, index: int) -> tuple[int, int, int]:
        """Source, lane and key."""
        key, lane = divmod(index, self._lanes)
        if isinstance(self._draws, int):
            return self._draws, lane, key
        source, key = self._draws.locate(lane, key)
        return source, lane, key

    def _read(self, source: int, lane: int, key: int) -> dict[str, Any]:
        if windows := self._state().windows[source]:
            return windows.read(lane, key)
        return self._opened[source][self._orders[source].example(lane, key)]

    def _advance(self, state: _Running, lane: int, key: int, step: int) -> None:
        keys = [key] if isinstance(self._draws, int) else self._draws.counts(lane, key)
        for windows, share, its_key in zip(state.windows, self._shares, keys, strict=True):
            if windows:
                windows.advance(lane, its_key, ceil(step * share))

    def _state(self) -> _Running:
        with _STARTING:
            if self._running is None:
                readers = Readers()
                self._running = _Running(
                    readers,
                    [
                        Windows(examples, order, share, readers, self._cache, self._patience)
                        if isinstance(examples, Blocked)
                        else None
                        for examples, order, share in zip(
                            self._opened, self._orders, self._shares, strict=True
                        )
                    ],
                )
            return self._running


@dataclass
class _Running:
    """State of a stream in use, in one process.

    Attributes:
      readers: its threads.
      windows: of each source; None where it is not read in blocks.
      lock: for the rest.
      begun: whether a piece was read.
      active: pieces that are being read, each with its first position in its lanes.
    """

    readers: Readers
    windows: list[Windows | None]
    lock: Any = field(default_factory=Lock)
    begun: bool = False
    active: list[tuple[int, int]] = field(default_factory=list)
