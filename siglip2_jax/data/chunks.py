"""The pieces of work of a pipeline: parts of one step's examples, read, prepared and stacked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from siglip2_jax.data.collate import blank_row, write_row
from siglip2_jax.data.example import with_name
from siglip2_jax.data.lengths import StepSchedule
from siglip2_jax.data.prepare import Prepare
from siglip2_jax.data.ring import batch_bytes
from siglip2_jax.data.work import Outcome
from siglip2_jax.types import Batch

# So many bad examples in a row are no accident.
_ATTEMPTS = 20
# A stream is endless: replacements are drawn from its first so many indices.
_REPLACEMENTS = 2**40
SHOWN = 3  # problems that are told of a piece of work


@runtime_checkable
class Stream(Protocol):
    """Raw examples by global index, endless."""

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """Example `index`; ValueError or OSError where it is corrupt."""
        ...


@dataclass(frozen=True, eq=False)
class Layout:
    """Examples of each piece of work, on one host.

    Attributes:
      budgets: patches an image may have in each step.
      starts: global index of the host's first example of each step.
      sizes: examples of the host in each step.
      parts: number of pieces of each step.
    """

    budgets: Int64[np.ndarray, " S"]
    starts: Int64[np.ndarray, " S"]
    sizes: Int64[np.ndarray, " S"]
    parts: Int64[np.ndarray, " S"]

    def rows(self, step: int, part: int) -> range:
        """The rows of a step's batch that a piece of work fills."""
        size, parts = int(self.sizes[step]), int(self.parts[step])
        return range(part * size // parts, (part + 1) * size // parts)


def layout(
    reading: StepSchedule, process_index: int, process_count: int, chunk: int, workers: int = 1
) -> Layout:
    """Cuts one host's share of each step into pieces of at most `chunk` examples, evenly.

    Workers get equally many pieces of a step, where it has enough examples.
    """
    sizes = reading.batch_sizes // process_count
    parts = np.minimum(-(-sizes // (chunk * workers)) * workers, sizes)
    starts = reading.positions[:-1] + process_index * sizes
    return Layout(reading.budgets, starts, sizes, parts)


class Chunks:
    """All pieces of work of a reading, as `work.Work`. Picklable if its parts are.

    All randomness of example g comes from `default_rng((seed, g))`; that of the replacement at
    attempt a, its choice included, from `default_rng((seed, g, a))`.
    """

    def __init__(self, stream: Stream, prepare: Prepare, seed: int, layout: Layout) -> None:
        self._layout = layout
        self._stream, self._prepare, self._seed = stream, prepare, seed

    def __len__(self) -> int:
        """Number of steps."""
        return len(self._layout.parts)

    @cached_property
    def _rows(self) -> dict[int, Batch]:
        """An empty row of each budget."""
        prepare = self._prepare
        return {
            budget: blank_row(
                prepare.preprocess,
                prepare.tokenizer.length,
                prepare.transforms,
                budget,
                prepare.pixels,
            )
            for budget in np.unique(self._layout.budgets).tolist()
        }

    def buffer_bytes(self) -> int:
        """Memory of the largest step's batch."""
        shapes = set(zip(self._layout.budgets.tolist(), self._layout.sizes.tolist(), strict=True))
        return max((batch_bytes(self._rows[x], size) for x, size in shapes), default=0)

    def parts(self, step: int, /) -> int:
        """Number of pieces of a step."""
        return int(self._layout.parts[step])

    def like(self, step: int, /) -> tuple[Batch, int]:
        """A batch of one row like those of a step, and the number of its rows."""
        return self._rows[int(self._layout.budgets[step])], int(self._layout.sizes[step])

    def fill(self, step: int, part: int, out: Batch, /) -> Outcome:
        """Prepares the examples of a piece of work, each in its row of the step's batch."""
        budget, first = int(self._layout.budgets[step]), int(self._layout.starts[step])
        problems: list[str] = []
        for row in self._layout.rows(step, part):
            item, its_problems = self._item(first + row, budget)
            write_row(item, out, row)
            problems += its_problems
        return Outcome(len(problems), tuple(problems[:SHOWN]))

    def _item(self, index: int, budget: int) -> tuple[dict[str, Any], list[str]]:
        """The arrays of an example or its replacement, and the problems of those it replaces."""
        problems: list[str] = []
        while len(problems) < _ATTEMPTS:
            attempt, candidate = len(problems), index
            rng = np.random.default_rng((self._seed, index, *([attempt] if attempt else [])))
            if attempt:
                candidate = int(rng.integers(_REPLACEMENTS))
            name = f"example {candidate}"
            try:
                example = self._stream[candidate]
                name = example["name"]
                return self._prepare(example, rng, budget), problems
            except (ValueError, OSError) as error:
                problems.append(str(with_name(error, name)))
        raise ValueError(
            f"{_ATTEMPTS} examples in a row could not be used; the first: {' '.join(problems[:3])}"
        )
