"""The pieces of work of a pipeline: parts of one step's examples, read, prepared and stacked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from siglip2_jax.data.example import ExampleError, with_name
from siglip2_jax.data.lengths import StepSchedule
from siglip2_jax.data.patience import PATIENCE, patiently
from siglip2_jax.data.prepare import Prepare, collate
from siglip2_jax.types import Batch

# So many bad examples in a row are no accident.
_ATTEMPTS = 20
# A stream is endless: replacements are drawn from its first so many indices.
_REPLACEMENTS = 2**40


@runtime_checkable
class Stream(Protocol):
    """Raw examples by global index, endless."""

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """Example `index`; ValueError where it cannot be used, OSError where it is not read."""
        ...


class Chunk(NamedTuple):
    """Some consecutive examples of one step.

    Attributes:
      batch: their arrays.
      bad: examples that could not be used and were replaced.
      problems: why, each with a name.
    """

    batch: Batch
    bad: int
    problems: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Layout:
    """Examples of each piece of work, on one host.

    Attributes:
      parts: number of pieces of each step.
      starts, ends: global index of each piece's first example, and of the one after its last.
      budgets: patches an image may have in each piece.
    """

    parts: Int64[np.ndarray, " S"]
    starts: Int64[np.ndarray, " K"]
    ends: Int64[np.ndarray, " K"]
    budgets: Int64[np.ndarray, " K"]


def layout(reading: StepSchedule, process_index: int, process_count: int, chunk: int) -> Layout:
    """Cuts one host's share of each step into pieces of at most `chunk` examples, evenly."""
    local = reading.batch_sizes // process_count
    parts = -(-local // chunk)
    step = np.repeat(np.arange(len(reading)), parts)
    piece = np.arange(len(step)) - np.repeat(np.cumsum(parts) - parts, parts)
    first = reading.positions[:-1][step] + process_index * local[step]
    starts = first + piece * local[step] // parts[step]
    ends = first + (piece + 1) * local[step] // parts[step]
    return Layout(parts, starts, ends, reading.budgets[step])


class Chunks:
    """All pieces of work of a reading, with random access. Picklable if its parts are.

    All randomness of example g comes from `default_rng((seed, g))`; that of the replacement at
    attempt a, its choice included, from `default_rng((seed, g, a))`. Only an example whose content
    cannot be used is replaced: what is wrong with the machine is a SourceError, after `patience`
    seconds where it may pass.
    """

    def __init__(
        self,
        stream: Stream,
        prepare: Prepare,
        seed: int,
        layout: Layout,
        patience: float = PATIENCE,
    ) -> None:
        self.layout = layout
        self._stream, self._prepare, self._seed = stream, prepare, seed
        self._patience = patience

    def __len__(self) -> int:
        return len(self.layout.starts)

    def __getitem__(self, k: int) -> Chunk:
        budget = int(self.layout.budgets[k])
        items, problems = [], []
        for index in range(int(self.layout.starts[k]), int(self.layout.ends[k])):
            item, its_problems = self._item(index, budget)
            items.append(item)
            problems += its_problems
        batch = collate(items, self._prepare.num_tokens(budget))
        return Chunk(batch, len(problems), tuple(problems))

    def _item(self, index: int, budget: int) -> tuple[dict[str, Any], list[str]]:
        """The arrays of an example or its replacement, and the problems of those it replaces."""
        problems: list[str] = []
        while len(problems) < _ATTEMPTS:
            read = partial(self._read, index, len(problems), budget)
            try:
                return patiently(read, f"example {index}", self._patience), problems
            except ExampleError as error:
                problems.append(str(error))
        raise ValueError(
            f"{_ATTEMPTS} examples in a row could not be used; the first: {' '.join(problems[:3])}"
        )

    def _read(self, index: int, attempt: int, budget: int) -> dict[str, Any]:
        """The arrays of an example, or of its replacement from the first attempt on."""
        rng = np.random.default_rng((self._seed, index, *([attempt] if attempt else [])))
        candidate = int(rng.integers(_REPLACEMENTS)) if attempt else index
        name = f"example {candidate}"
        try:
            example = self._stream[candidate]
            name = example["name"]
            return self._prepare(example, rng, budget)
        except ValueError as error:
            raise with_name(error, name) from error
