"""Batches for training: shuffled, mixed, prepared in parallel, the same for any number of hosts.

Examples of a run are numbered by one global index, and a stream (`blocks.streams`) gives example g
without reading those before it, so the state of a pipeline is one integer.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property

import jax
import numpy as np

from siglip2_jax.data.blocks.layout import Layout, layout
from siglip2_jax.data.blocks.shuffle import BlockShuffle, block_shuffle
from siglip2_jax.data.blocks.streams import BlockStream, WholeStream
from siglip2_jax.data.chunks import SHOWN, Chunks, Stream
from siglip2_jax.data.lengths import StepSchedule
from siglip2_jax.data.patience import PATIENCE
from siglip2_jax.data.prepare import Prepare
from siglip2_jax.data.sources import Examples, Mixture, Source
from siglip2_jax.data.stores.client import Counts
from siglip2_jax.data.stores.store import set_patience
from siglip2_jax.data.workers.steps import Steps
from siglip2_jax.types import Batch

# Before this many examples, a share of bad ones says little.
_JUDGED_FROM = 200
PLACING = 1  # batches that are being copied to devices: their buffers are not written again yet


def _copy(batch: Batch) -> Batch:
    return jax.tree.map(np.array, batch)


@dataclass(frozen=True)
class HostBatch:
    """One step's data, on one host.

    Attributes:
      batch: this host's part of the batch as NumPy arrays, or what was made of them.
      step: the step's number.
      budget: patches an image may have.
      position: global index of the example after this step's last; with `step + 1` it is all that
        a resumed run needs.
      bad: examples of this host's part that could not be used and were replaced.
      problems: the first few reasons, each with a name.
      restarts: worker processes that were lost and started again since the step before.
      requests: those to stores that this host has made since the step before.
    """

    batch: Batch
    step: int
    budget: int
    position: int
    bad: int
    problems: tuple[str, ...]
    restarts: int = 0
    requests: Counts = Counts()


@dataclass(frozen=True)
class Pipeline:
    """Reads batches.

    The global batches depend on the source, `prepare`, `seed` and `shuffle` alone. Host h of P
    gets examples [h * b / P, (h + 1) * b / P) of each step's b. Corrupt examples and those without
    a caption are replaced by others, drawn by the seed and their global index, in block order from
    the same window; data that cannot be read for another reason stops the run.

    Attributes:
      source: where examples come from.
      prepare: what makes arrays of them.
      seed: from 0 up, below 2**32.
      process_index: h, this host's number.
      process_count: P, the number of hosts.
      workers: processes that prepare examples; 0 for threads alone. Processes start anew, so a
        script that uses them needs an `if __name__ == "__main__":` guard.
      threads: threads that prepare examples, in each process.
      prefetch: batches prepared ahead.
      max_bad_share: the share of bad examples above which reading stops, from 200 examples on.
      chunk: examples prepared as one piece of work; bounds latency and memory.
      shuffle: whether examples come in a random order, another one in each epoch. True shuffles
        them one by one, unless a source is in an object store: then, as `BlockShuffle` says.
      cache: a local directory where blocks of examples are held ahead; None for memory.
      patience: seconds that reading goes on trying what may pass.
    """

    source: Source | Mixture
    prepare: Prepare
    seed: int
    process_index: int = 0
    process_count: int = 1
    workers: int = 0
    threads: int = 2
    prefetch: int = 2
    max_bad_share: float = 0.05
    chunk: int = 64
    shuffle: bool | BlockShuffle = True
    cache: str | None = None
    patience: float = PATIENCE

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be from 0 up and below 2**32, got {self.seed}")
        if not 0 <= self.process_index < self.process_count:
            raise ValueError(
                f"process_index must be from 0 up and below process_count={self.process_count}, "
                f"got {self.process_index}"
            )
        if self.workers < 0 or min(self.threads, self.prefetch, self.chunk) < 1:
            raise ValueError(
                "threads, prefetch and chunk must be at least 1 and workers at least 0, got "
                f"{self.threads}, {self.prefetch}, {self.chunk} and {self.workers}"
            )

    @cached_property
    def _opened(self) -> list[Examples]:
        """The sources of the mixture, or the single source, each opened once."""
        opened = [source.open() for source in _flatten(self.source)]
        for examples in opened:
            set_patience(examples, self.patience)
        return opened

    @property
    def sizes(self) -> list[tuple[str, int]]:
        """Each source in short, and how many examples it has; opens them."""
        names = [f"{source!r:.80}" for source in _flatten(self.source)]
        return list(zip(names, map(len, self._opened), strict=True))

    def check(self, budget: int) -> None:
        """Prepares one example of each source, so that errors show before any work.

        Args:
          budget: patches an image may have.

        Raises:
          ValueError: a source cannot be opened, or its examples cannot be used.
          OSError: a source cannot be opened or read.
        """
        first = layout(StepSchedule(((budget, 1),), 1), 0, 1, self.chunk)
        for source, examples in zip(_flatten(self.source), self._opened, strict=True):
            stream = WholeStream(source, [examples], self.seed, bool(self.shuffle))
            chunks = Chunks(stream, first, self.prepare, self.seed, self.patience)
            row, _ = chunks.like(0)
            chunks.fill(0, 0, row)

    def memory(self, reading: StepSchedule) -> int:
        """Bytes of the buffers that batches are prepared in."""
        return self._slots * self._chunks(reading).buffer_bytes()

    def batches(
        self, reading: StepSchedule, place: Callable[[Batch], Batch] = _copy
    ) -> Generator[HostBatch, None, None]:
        """Reads the steps of `reading`, in order. Closing the generator releases its workers.

        Args:
          reading: the steps.
          place: makes what is given of this host's NumPy arrays; must not return the arrays
            themselves, which are written again after the next batch is asked for. Copies them
            unless told otherwise; `sharding.put_batch` puts them on devices.

        Raises:
          ValueError: at once where a source cannot be opened or a batch size is not divisible by
            the number of hosts; later, where too many examples are bad.
          OSError: a source cannot be opened; later, a SourceError where it cannot be read.
        """
        return self._run(reading, self._chunks(reading), place)

    def _chunks(self, reading: StepSchedule) -> Chunks:
        return Chunks(*self._planned(reading), self.prepare, self.seed, self.patience)

    def _planned(self, reading: StepSchedule) -> tuple[Stream, Layout]:
        """Examples in their order, and the pieces that this host's part is read in."""
        hosts = self.process_index, self.process_count, self.chunk
        order = block_shuffle(self.shuffle, self._opened)
        if order is None:
            whole = WholeStream(self.source, self._opened, self.seed, bool(self.shuffle))
            return whole, layout(reading, *hosts, self.workers)
        lanes, window = order.resolve(reading.batch_sizes)
        pieces = layout(reading, *hosts, self.workers, lanes)
        held = (window, self.cache, self.patience)
        return BlockStream(self.source, self._opened, self.seed, pieces, *held), pieces

    def _run(
        self, reading: StepSchedule, chunks: Chunks, place: Callable[[Batch], Batch]
    ) -> Generator[HostBatch, None, None]:
        total = bad = 0
        problems: tuple[str, ...] = ()
        with closing(chunks), closing(self._start(chunks)) as steps:
            for step, budget, size, position in reading:
                filled = steps.take()
                step_bad = sum(part.bad for part in filled.outcomes)
                lines = [line for part in filled.outcomes for line in part.problems]
                step_problems = tuple(lines[:SHOWN])
                total += size // self.process_count + step_bad
                bad, problems = bad + step_bad, (*problems, *step_problems)[:SHOWN]
                self._judge(total, bad, problems)
                batch = place(filled.batch)
                yield HostBatch(
                    batch,
                    step,
                    budget,
                    position + size,
                    step_bad,
                    step_problems,
                    filled.restarts,
                    sum((part.requests for part in filled.outcomes), Counts()),
                )
                jax.block_until_ready(batch)  # on the devices: the buffer may be written again
                steps.release(filled.slot)

    def _start(self, chunks: Chunks) -> Steps[Batch]:
        workers = min(self.workers, chunks.layout.workers)
        steps = range(len(chunks.layout.reading))
        return Steps(
            chunks,
            steps,
            workers=workers,
            threads=self.threads,
            slots=self._slots,
            patience=self.patience,
        )

    @property
    def _slots(self) -> int:
        return self.prefetch + PLACING

    def _judge(self, read: int, bad: int, problems: tuple[str, ...]) -> None:
        if read >= _JUDGED_FROM and bad > self.max_bad_share * read:
            raise ValueError(
                f"{bad} of {read} examples ({bad / read:.1%}) could not be used, more than "
                f"max_bad_share={self.max_bad_share:.1%}; the first: {' '.join(problems)}"
            )


def _flatten(source: Source | Mixture) -> list[Source]:
    """The sources of a mixture, in order; any other source alone."""
    if isinstance(source, Mixture):
        return [leaf for part, _ in source.parts for leaf in _flatten(part)]
    return [source]
