"""Batches for training: shuffled, mixed, prepared in parallel, the same for any number of hosts.

The only module that imports grain (github.com/google/grain). Examples of a run are numbered by one
global index; grain's random access gives example g of the shuffled, repeated, mixed sources without
reading those before it, so the state of a pipeline is one integer.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import cached_property
from threading import Thread
from typing import Any, cast

import grain
import jax
import numpy as np
from absl import flags
from grain._src.python.ipc.shared_memory_array import SharedMemoryArray

from siglip2_jax.data.chunks import Chunks, Stream, layout
from siglip2_jax.data.lengths import StepSchedule
from siglip2_jax.data.patience import PATIENCE
from siglip2_jax.data.prepare import Prepare
from siglip2_jax.data.sources import Examples, Mixture, Source
from siglip2_jax.types import Batch

# grain's worker processes read absl flags, which fails in a program that never parsed any
# (github.com/google/grain/issues/1355).
if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()

# Before this many examples, a share of bad ones says little.
_JUDGED_FROM = 200
_SHOWN = 3


@dataclass(frozen=True)
class HostBatch:
    """One step's data, on one host.

    Attributes:
      batch: NumPy arrays, this host's part of the batch.
      step: the step's number.
      budget: patches an image may have.
      position: global index of the example after this step's last; with `step + 1` it is all that
        a resumed run needs.
      bad: examples of this host's part that could not be used and were replaced.
      problems: the first few reasons, each with a name.
    """

    batch: Batch
    step: int
    budget: int
    position: int
    bad: int
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Pipeline:
    """Reads batches.

    The global batches depend on the source, `prepare`, `seed` and `shuffle` alone. Host h of P
    gets examples [h * b / P, (h + 1) * b / P) of each step's b. Corrupt examples and those without
    a caption are replaced by others, drawn by the seed and their global index; data that cannot be
    read for another reason stops the run.

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
      shuffle: whether examples come in a random order, another one in each epoch.
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
    shuffle: bool = True
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
        return [source.open() for source in _flatten(self.source)]

    @cached_property
    def _stream(self) -> grain.MapDataset:
        return _stream(self.source, iter(self._opened), self.seed, self.shuffle)

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
        first = layout(StepSchedule(np.array([budget]), np.array([1])), 0, 1, self.chunk)
        for examples in self._opened:
            stream = cast(Stream, _repeated(examples, self.seed, self.shuffle))
            Chunks(stream, self.prepare, self.seed, first, self.patience)[0]

    def batches(self, reading: StepSchedule) -> Generator[HostBatch, None, None]:
        """Reads the steps of `reading`, in order. Closing the generator releases its workers.

        Raises:
          ValueError: at once where a source cannot be opened or a batch size is not divisible by
            the number of hosts; later, where too many examples are bad.
          OSError: a source cannot be opened; later, a SourceError where it cannot be read.
        """
        wrong = reading.batch_sizes[reading.batch_sizes % self.process_count != 0]
        if len(wrong):
            raise ValueError(
                f"a batch of {wrong[0]} cannot be divided among {self.process_count} hosts; choose "
                "a batch size that is a multiple of their number"
            )
        pieces = layout(reading, self.process_index, self.process_count, self.chunk)
        stream = cast(Stream, self._stream)  # none of whose examples is missing, as grain allows
        chunks = Chunks(stream, self.prepare, self.seed, pieces, self.patience)
        return self._run(reading, chunks)

    def _run(self, reading: StepSchedule, chunks: Chunks) -> Generator[HostBatch, None, None]:
        total = bad = 0
        problems: tuple[str, ...] = ()
        parts = chunks.layout.parts.tolist()
        iterator = self._start(chunks)
        try:
            for (step, budget, size, position), count in zip(reading, parts, strict=True):
                batch, step_bad, step_problems = _read(iterator, count)
                total, bad = total + size // self.process_count + step_bad, bad + step_bad
                problems = (*problems, *step_problems)[:_SHOWN]
                self._judge(total, bad, problems)
                yield HostBatch(batch, step, budget, position + size, step_bad, step_problems)
        finally:
            iterator.close()
            if self.workers:
                _unlink_unread()

    def _start(self, chunks: Chunks) -> Any:
        """Starts threads, or processes with threads; elements come in the order of the chunks."""
        ahead = self.prefetch * int(chunks.layout.parts.max(initial=1))
        workers = min(self.workers, len(chunks))
        inner = max(self.threads, ahead if not workers else 1)
        options = grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=inner)
        dataset = (
            grain.MapDataset.range(len(chunks)).map(chunks.__getitem__).to_iter_dataset(options)
        )
        if workers:
            per_worker = -(-ahead // workers)
            processes = grain.MultiprocessingOptions(workers, per_worker_buffer_size=per_worker)
            dataset = dataset.mp_prefetch(processes, worker_init_fn=_begin_worker)
        iterator = iter(dataset)
        iterator.get_state()  # makes all workers' parts: closing forgets those not read from yet
        iterator.start_prefetch()
        return iterator

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


def _stream(
    source: Source | Mixture, examples: Iterator[Examples], seed: int, shuffle: bool
) -> grain.MapDataset:
    """An endless data set of raw examples by global index; takes its sources from `examples`."""
    if isinstance(source, Mixture):
        # Each part has a seed of its own, or parts of the same length would be shuffled alike.
        seeds = np.random.SeedSequence(seed).generate_state(len(source.parts))
        parts = [
            _stream(part, examples, int(its_seed), shuffle)
            for (part, _), its_seed in zip(source.parts, seeds, strict=True)
        ]
        return grain.MapDataset.mix(parts, weights=[weight for _, weight in source.parts])
    return _repeated(next(examples), seed, shuffle)


def _repeated(examples: Any, seed: int, shuffle: bool) -> grain.MapDataset:
    """Examples without end, in another order in each epoch; grain's type is not `Examples`."""
    dataset = grain.MapDataset.source(examples).seed(seed)
    return (dataset.shuffle() if shuffle else dataset).repeat()


def _read(iterator: Any, count: int) -> tuple[Batch, int, tuple[str, ...]]:
    """Copies a step's batch out of the memory shared with workers; also gives its bad examples."""
    parts = [next(iterator) for _ in range(count)]
    batch = jax.tree.map(
        lambda *arrays: np.concatenate([np.asarray(array) for array in arrays]),
        *[part.batch for part in parts],
    )
    problems = tuple(line for part in parts for line in part.problems)[:_SHOWN]
    return batch, sum(part.bad for part in parts), problems


def _unlink_unread() -> None:
    """Frees the shared memory of what a closed iterator of grain had read ahead.

    The last arrays of each worker are held by a cycle through a traceback, and grain unlinks on a
    thread whose queue it throws away at exit.
    """
    gc.collect()
    if pool := SharedMemoryArray._del_thread_pool:
        pool.apply(int)  # it has one thread: what came before is done


def _begin_worker(worker: int, workers: int) -> None:
    """Ties a worker process to the training process.

    It keeps off the accelerator, leaves signals that all processes of a run get to the training
    process, which ends it in good order, and does not outlive that.
    """
    jax.config.update("jax_platforms", "cpu")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)
