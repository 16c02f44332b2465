"""Workers of a pipeline: threads or processes that fill the steps' buffers.

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
from collections.abc import Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from threading import Lock, Thread, current_thread
from typing import Any

import cloudpickle
import jax

from siglip2_jax.data.example import SourceError
from siglip2_jax.data.workers.ring import Ring, SharedBytes
from siglip2_jax.data.workers.work import Done, Outcome, Task, Work, do

LOSSES, SECONDS = 3, 60.0  # so many workers lost in so short a time are no accident
SECONDS_TO_CLOSE = 10.0  # for what is under way


class Threads:
    """Workers that are threads of this process."""

    restarts = 0

    def __init__(self, work: Work[Any], ring: Ring, threads: int) -> None:
        """Starts them."""
        self._work, self._ring = work, ring
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._done: SimpleQueue[Done] = SimpleQueue()
        # Of an executor's threads the interpreter would wait for one that hangs, for ever.
        self._threads = [
            Thread(target=self._serve, name="siglip2_jax data", daemon=True) for _ in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, task: Task, owner: int) -> None:
        """Hands a task to whoever is free."""
        self._tasks.put(task)

    def wait(self, seconds: float) -> Iterable[Done]:
        """The next task that is over; none where it takes longer."""
        with suppress(Empty):
            return [self._done.get(timeout=seconds)]
        return []

    def close(self) -> None:
        """Waits for what is under way, unless it hangs, and drops the rest."""
        with suppress(Empty):
            while True:
                self._tasks.get_nowait()
        for _ in self._threads:
            self._tasks.put(None)
        end = time.monotonic() + SECONDS_TO_CLOSE
        for thread in self._threads:
            if thread is not current_thread():  # on which the garbage collector may close this
                thread.join(max(0.0, end - time.monotonic()))

    def _serve(self) -> None:
        while (task := self._tasks.get()) is not None:
            self._done.put(do(self._work, self._ring, task))


class _Worker:
    """A process and what it has to do."""

    def __init__(self) -> None:
        self.process: Any = None
        self.connection: Any = None
        self.tasks: dict[tuple[Hashable, int], Task] = {}

    def send(self, task: Task) -> None:
        with suppress(OSError):  # it is lost, which `wait` notices
            self.connection.send(task)


class Processes:
    """Workers that are processes of their own: what owner o has to do goes to number o mod n.

    They start anew, so that a script needs an `if __name__ == "__main__":` guard.

    Attributes:
      restarts: how often one was lost and started again.
    """

    def __init__(self, work: Work[Any], ring: Ring, workers: int, threads: int) -> None:
        """Starts them; no more than have something to do."""
        content = cloudpickle.dumps(work)  # what a notebook or script defines goes by value
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

    def submit(self, task: Task, owner: int) -> None:
        """Hands a task to its owner."""
        worker = self._workers[owner % len(self._workers)]
        worker.tasks[task.step, task.part] = task
        worker.send(task)

    def wait(self, seconds: float) -> Iterable[Done]:
        """Waits for tasks that are over, not longer; starts again what is lost meanwhile.

        Raises:
          SourceError: several were lost within a short time.
        """
        for key, _ in self._selector.select(seconds):
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
        work: Work[Any] = pickle.loads(program.bytes)
    except Exception as error:
        send(Done(None, error))
    else:
        pool = ThreadPoolExecutor(threads)
        with suppress(EOFError, OSError):
            while True:
                task = connection.recv()
                pool.submit(lambda task=task: send(do(work, ring, task)))
    os._exit(0)  # whatever its threads wait for


def _portable(done: Done) -> Done:
    """A result whose error can be pickled, with a note on where it was raised if no user's."""
    error = done.outcome
    assert isinstance(error, Exception)
    if not isinstance(error, ValueError | OSError):  # whose sentence says all
        error.add_note("".join(traceback.format_exception(error)))
    with suppress(Exception):
        pickle.loads(pickle.dumps(error))
        return done
    return Done(done.task, RuntimeError(f"{type(error).__name__}: {error}"))
