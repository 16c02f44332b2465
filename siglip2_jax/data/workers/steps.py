"""Steps of a pipeline, prepared ahead in a ring of buffers and given in order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic

from siglip2_jax.data.example import SourceError
from siglip2_jax.data.patience import PATIENCE
from siglip2_jax.data.workers.pool import Processes, Threads
from siglip2_jax.data.workers.ring import Ring
from siglip2_jax.data.workers.work import B, Outcome, Task, Work

SECONDS_OF_WORK = 60.0  # a part of a step takes far less


@dataclass(frozen=True)
class Filled(Generic[B]):
    """One step's batch in its buffer.

    Attributes:
      batch: arrays within the buffer, valid until it is released.
      slot: the buffer.
      outcomes: of its parts, in order.
      restarts: workers that were lost and started again since the step before.
    """

    batch: B
    slot: int
    outcomes: list[Outcome]
    restarts: int


class Steps(Generic[B]):
    """The steps of some work, one after the other; as many ahead as there are free buffers."""

    def __init__(
        self,
        work: Work[B],
        steps: Iterable[Hashable],
        *,
        workers: int,
        threads: int,
        slots: int,
        patience: float = PATIENCE,
    ) -> None:
        """Starts to work.

        Args:
          work: what to do.
          steps: keys of its steps, each another one, taken as buffers become free.
          workers: number of processes; 0 for threads of this one alone.
          threads: number of threads, in each process.
          slots: number of buffers; as many steps at a time are worked on or not yet released.
          patience: seconds for which a read is tried again where it fails. Where nothing at all is
            done for more than twice as long, it hangs.
        """
        self._work, self._patience = work, 2 * patience + SECONDS_OF_WORK
        self._ring = Ring(slots, work.buffer_bytes())
        self._free = deque(range(slots))
        self._steps, self._restarts = iter(steps), 0
        self._slots: dict[Hashable, int] = {}  # of the steps begun and not yet taken, in order
        self._outcomes: dict[Hashable, dict[int, Outcome | Exception]] = {}
        self._team = (
            Processes(work, self._ring, workers, threads)
            if workers
            else Threads(work, self._ring, threads)
        )

    def take(self) -> Filled[B]:
        """Waits for the next step.

        Raises:
          SourceError: workers are lost again and again, or nothing comes from them.
          ValueError or OSError: that of a part of this step.
        """
        self._start()
        step = next(iter(self._slots))
        outcomes, parts = self._outcomes[step], self._work.parts(step)
        end = time.monotonic() + self._patience
        while len(outcomes) < parts:
            done = tuple(self._team.wait(max(0.0, end - time.monotonic())))
            if done:
                end = time.monotonic() + self._patience
            elif time.monotonic() >= end:
                raise SourceError(
                    f"no data has come for {self._patience:g} s, as where a mount hangs "
                    "(Data.patience sets it); run the same command again once the data can be read"
                )
            for task, outcome in done:
                if task is None:
                    assert isinstance(outcome, Exception)
                    raise outcome
                self._outcomes[task.step][task.part] = outcome
        del self._outcomes[step]
        slot, (row, rows) = self._slots.pop(step), self._work.like(step)
        in_order: list[Outcome] = []
        for part in range(len(outcomes)):
            outcome = outcomes[part]
            if isinstance(outcome, Exception):
                raise outcome
            in_order.append(outcome)
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
        while self._free and (step := next(self._steps, None)) is not None:
            slot = self._free.popleft()
            self._slots[step], self._outcomes[step] = slot, {}
            for part in range(self._work.parts(step)):
                self._team.submit(Task(step, part, slot), self._work.owner(step, part))
