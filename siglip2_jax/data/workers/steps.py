"""Steps of a pipeline, prepared ahead in a ring of buffers and given in order."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from siglip2_jax.data.workers.pool import Processes, Threads
from siglip2_jax.data.workers.ring import Ring
from siglip2_jax.data.workers.work import Outcome, Task, Work
from siglip2_jax.types import Batch


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
        in_order: list[Outcome] = []
        for part in range(len(outcomes)):
            outcome = outcomes[part]
            if isinstance(outcome, Exception):
                raise outcome
            in_order.append(outcome)
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
