"""Workers of a pipeline: threads or processes that fill the steps' buffers, ahead and in order.

Parts of steps are work that gives the same whenever and wherever it is done. So a process that is
killed is started again, and does again what it had not finished.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
import pickle
import selectors
import signal
import time
import traceback
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Lock
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from siglip2_jax.data.example import SourceError
from siglip2_jax.data.ring import Ring, SharedBytes
from siglip2_jax.types import Batch

LOSSES, SECONDS = 3, 60.0  # so many workers lost in so short a time are no accident


class Outcome(NamedTuple):
    """Result of a piece of work, beside the rows it has written.

    Attributes:
      bad: examples that could not be used and were replaced.
      problems: why, each with a name.
    """

    bad: int
    problems: tuple[str, ...]


@runtime_checkable
class Work(Protocol):
    """Steps, each in parts that may be done in any order. Picklable."""

    def __len__(self) -> int:
        """Number of steps."""
        ...

    def buffer_bytes(self) -> int:
        """Memory of the largest step's batch (`ring.batch_bytes`)."""
        ...

    def parts(self, step: int, /) -> int:
        """Number of parts of a step."""
        ...

    def like(self, step: int, /) -> tuple[Batch, int]:
        """A batch of one row like those of a step, and the number of its rows."""
        ...

    def fill(self, step: int, part: int, out: Batch, /) -> Outcome:
        """Writes the part's rows of the step's batch."""
        ...


class Task(NamedTuple):
    """A part of a step to do, and the buffer that it goes to."""

    step: int
    part: int
    slot: int


class Done(NamedTuple):
    """A task that is over."""

    task: Task | None  # None where a worker could not begin
    outcome: Outcome | Exception


class Filled(NamedTuple):
    """One step's batch in its buffer.

    Attributes:
      batch: arrays within the buffer, valid until it is released.
      slot: the buffer.
      outcomes: of its parts, in order.
      restarts: workers that were lost and started again since the step before.
    """

    batch: Batch
    slot: int
    outcomes: list[Outcome]
    restarts: int


class Steps:
    """The steps of some work, one after the other; as many ahead as there are free buffers."""

    def __init__(self, work: Work, *, workers: int, threads: int, slots: int) -> None:
        """Starts to work.

        Args:
          work: what to do.
          workers: number of processes; 0 for threads of this one alone.
          threads: number of threads, in each process.
          slots: number of buffers; as many steps at a time are worked on or not yet released.
        """
        self._work = work
        self._ring = Ring(slots, work.buffer_bytes())
        self._free = deque(range(slots))
        self._started = self._taken = self._restarts = 0
        self._slots: dict[int, int] = {}
        self._outcomes: dict[int, dict[int, Outcome | Exception]] = {}
        self._team = (
            Processes(work, self._ring, workers, threads)
            if workers
            else Threads(work, self._ring, threads)
        )

    def take(self) -> Filled:
        """Waits for the next step.

        Raises:
          SourceError: workers are lost again and again.
          ValueError or OSError: that of a part of this step.
        """
        self._start()
        step = self._taken
        outcomes = self._outcomes[step]
        while len(outcomes) < self._work.parts(step):
            for task, outcome in self._team.wait():
                if task is None:
                    assert isinstance(outcome, Exception)
                    raise outcome
                self._outcomes[task.step][task.part] = outcome
        del self._outcomes[step]
        self._taken += 1
        in_order = [outcomes[part] for part in range(len(outcomes))]
        for outcome in in_order:
            if isinstance(outcome, Exception):
                raise outcome
        slot, (row, rows) = self._slots.pop(step), self._work.like(step)
        restarts, self._restarts = self._team.restarts - self._restarts, self._team.restarts
        return Filled(self._ring.batch(slot, row, rows), slot, in_order, restarts)

    def release(self, slot: int) -> None:
        """Gives a buffer back, which is soon written again."""
        self._free.append(slot)
        self._start()

    def close(self) -> None:
        """Ends all workers."""
        self._team.close()

    def _start(self) -> None:
        while self._free and self._started < len(self._work):
            step, slot = self._started, self._free.popleft()
            self._slots[step], self._outcomes[step] = slot, {}
            for part in range(self._work.parts(step)):
                self._team.submit(Task(step, part, slot))
            self._started += 1


def _do(work: Work, ring: Ring, task: Task) -> Done:
    """Does a task; its error is a result like any other."""
    try:
        out = ring.batch(task.slot, *work.like(task.step))
        return Done(task, work.fill(task.step, task.part, out))
    except Exception as error:
        return Done(task, error)


class Threads:
    """Workers that are threads of this process."""

    restarts = 0

    def __init__(self, work: Work, ring: Ring, threads: int) -> None:
        """Starts them."""
        self._work, self._ring = work, ring
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="siglip2_jax data")
        self._done: SimpleQueue[Done] = SimpleQueue()

    def submit(self, task: Task) -> None:
        """Hands a task to whoever is free."""
        self._pool.submit(lambda: self._done.put(_do(self._work, self._ring, task)))

    def wait(self) -> Iterable[Done]:
        """The next task that is over."""
        return [self._done.get()]

    def close(self) -> None:
        """Waits for what is under way, and drops the rest."""
        self._pool.shutdown(cancel_futures=True)


class _Worker:
    """A process and what it has to do."""

    def __init__(self) -> None:
        self.process: Any = None
        self.connection: Any = None
        self.tasks: dict[tuple[int, int], Task] = {}

    def send(self, task: Task) -> None:
        with suppress(OSError):  # it is lost, which `wait` notices
            self.connection.send(task)


class Processes:
    """Workers that are processes of their own: part p of every step goes to number p mod n.

    They start anew, so that a script needs an `if __name__ == "__main__":` guard.

    Attributes:
      restarts: how often one was lost and started again.
    """

    def __init__(self, work: Work, ring: Ring, workers: int, threads: int) -> None:
        """Starts them; no more than have something to do."""
        content = pickle.dumps(work, pickle.HIGHEST_PROTOCOL)
        program = SharedBytes(len(content))
        program.bytes[:] = content
        self._arguments = ring, program, threads
        self._selector = selectors.DefaultSelector()
        self._lost: deque[float] = deque(maxlen=LOSSES)
        self._workers = [_Worker() for _ in range(workers)]
        self.restarts = 0
        self._end = multiprocessing.util.Finalize(None, _kill, [self._workers], exitpriority=10)
        for worker in self._workers:
            self._start(worker)

    def submit(self, task: Task) -> None:
        """Hands a task to the worker of its part."""
        worker = self._workers[task.part % len(self._workers)]
        worker.tasks[task.step, task.part] = task
        worker.send(task)

    def wait(self) -> Iterable[Done]:
        """Waits for tasks that are over; starts again what is lost meanwhile.

        Raises:
          SourceError: several were lost within a short time.
        """
        for key, _ in self._selector.select():
            worker: _Worker = key.data
            try:
                done = worker.connection.recv()
            except (EOFError, OSError):
                self._restart(worker)
                continue
            if done.task is not None:
                del worker.tasks[done.task.step, done.task.part]
            yield done

    def close(self) -> None:
        """Ends them at once: they hold nothing that would have to be written."""
        self._end()
        self._selector.close()

    def _start(self, worker: _Worker) -> None:
        context = multiprocessing.get_context("spawn")
        worker.connection, other = context.Pipe()
        worker.process = context.Process(
            target=_serve, args=(other, *self._arguments), name="siglip2_jax data", daemon=True
        )
        worker.process.start()
        other.close()  # so that its end is noticed
        self._selector.register(worker.connection, selectors.EVENT_READ, worker)

    def _restart(self, worker: _Worker) -> None:
        self._selector.unregister(worker.connection)
        worker.connection.close()
        worker.process.join()
        self._lost.append(now := time.monotonic())
        ending = _ending(worker.process.exitcode)
        if len(self._lost) == LOSSES and now - self._lost[0] < SECONDS:
            raise SourceError(
                f"{LOSSES} data workers were lost within {now - self._lost[0]:.0f} s, the last by "
                f"{ending}; lower data.workers or data.prefetch, or give the machine more memory"
            )
        self.restarts += 1
        self._start(worker)
        for task in worker.tasks.values():
            worker.send(task)


def _kill(workers: list[_Worker]) -> None:
    for worker in workers:
        if worker.process is not None:
            worker.process.kill()
            worker.connection.close()
    for worker in workers:
        if worker.process is not None:
            worker.process.join()
            worker.process = None


def _ending(code: int) -> str:
    """Phrase on how a process ended."""
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"{name}, as the out-of-memory killer sends" if name == "SIGKILL" else name


def _serve(connection: Connection, ring: Ring, program: SharedBytes, threads: int) -> None:
    """Works until the training process closes the connection or ends.

    It keeps off the accelerator, and leaves signals that all processes of a run get to the training
    process, which ends it in good order.
    """
    jax.config.update("jax_platforms", "cpu")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    lock = Lock()

    def send(done: Done) -> None:
        with lock, suppress(OSError):  # where nobody listens any more, this process ends, too
            connection.send(done if isinstance(done.outcome, Outcome) else _portable(done))

    try:
        work: Work = pickle.loads(program.bytes)
    except Exception as error:
        send(Done(None, error))
    else:
        pool = ThreadPoolExecutor(threads)
        with suppress(EOFError, OSError):
            while True:
                task = connection.recv()
                pool.submit(lambda task=task: send(_do(work, ring, task)))
    os._exit(0)  # whatever its threads wait for


def _portable(done: Done) -> Done:
    """A result whose error can be pickled and unpickled, with a note on where it was raised."""
    error = done.outcome
    assert isinstance(error, Exception)
    error.add_note("".join(traceback.format_exception(error)))
    with suppress(Exception):
        pickle.loads(pickle.dumps(error))
        return done
    return Done(done.task, RuntimeError(f"{type(error).__name__}: {error}"))
