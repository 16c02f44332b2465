"""Contract between the steps of a pipeline and the workers that fill their buffers."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from siglip2_jax.data.stores.client import Counts
from siglip2_jax.data.workers.ring import Ring

B = TypeVar("B")  # a batch: a tree of arrays


class Outcome(NamedTuple):
    """Result of a piece of work, beside the rows it has written.

    Attributes:
      bad: examples that could not be used and were replaced.
      problems: why, each with a name.
      requests: those to stores, of this process since its last piece of work.
      items: what there is to say of each row, in order, beside its arrays.
    """

    bad: int
    problems: tuple[str, ...]
    requests: Counts = Counts()
    items: tuple[Any, ...] = ()


@runtime_checkable
class Work(Protocol[B]):
    """Steps, each in parts that may be done in any order. Picklable, and so are a step's keys."""

    def buffer_bytes(self) -> int:
        """Memory of the largest step's batch (`ring.batch_bytes`)."""
        ...

    def parts(self, step: Any, /) -> int:
        """Number of parts of a step."""
        ...

    def owner(self, step: Any, part: int, /) -> int:
        """Number of the worker that a part is for, modulo their number."""
        ...

    def like(self, step: Any, /) -> tuple[B, int]:
        """A batch of one row like those of a step, and the number of its rows."""
        ...

    def fill(self, step: Any, part: int, out: B, /) -> Outcome:
        """Writes the part's rows of the step's batch."""
        ...


class Task(NamedTuple):
    """A part of a step to do, and the buffer that it goes to."""

    step: Hashable
    part: int
    slot: int


class Done(NamedTuple):
    """A task that is over."""

    task: Task | None  # None where a worker could not begin
    outcome: Outcome | Exception


def do(work: Work[Any], ring: Ring, task: Task) -> Done:
    """Does a task; its error is a result like any other."""
    try:
        out = ring.batch(task.slot, *work.like(task.step))
        return Done(task, work.fill(task.step, task.part, out))
    except Exception as error:
        return Done(task, error)
