"""The pieces of work of a pipeline: parts of one step's examples, read, prepared and stacked."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from siglip2_jax.data.example import with_name
from siglip2_jax.data.layout import Layout
from siglip2_jax.data.prepare import Prepare, collate
from siglip2_jax.types import Batch

# So many bad examples in a row are no accident.
_ATTEMPTS = 20


@runtime_checkable
class Stream(Protocol):
    """Raw examples by global index, endless. Picklable before use, thread-safe."""

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """Example `index`; ValueError or OSError where it is corrupt."""
        ...

    def near(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Another example, drawn by `rng`, in place of one that cannot be used."""
        ...

    def using(self, i: int, part: int) -> AbstractContextManager[None]:
        """Context within which a piece of the i-th step reads its examples."""
        ...

    def close(self) -> None:
        """Ends what reads ahead."""
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


class Chunks:
    """All pieces of work of a reading, with random access. Picklable if its parts are.

    Piece k is piece k % parts of step k // parts of the layout.

    All randomness of example g comes from `default_rng((seed, g))`; that of the replacement at
    attempt a, its choice included, from `default_rng((seed, g, a))`.
    """

    def __init__(self, stream: Stream, layout: Layout, prepare: Prepare, seed: int) -> None:
        self.layout = layout
        self._stream, self._prepare, self._seed = stream, prepare, seed

    def __len__(self) -> int:
        return len(self.layout.reading) * self.layout.parts

    def __getitem__(self, k: int) -> Chunk:
        i, part = divmod(k, self.layout.parts)
        _, budget, *_ = self.layout.reading[i]
        items, problems = [], []
        with self._stream.using(i, part):
            for index in self.layout.indices(i, part):
                item, its_problems = self._item(index, budget)
                items.append(item)
                problems += its_problems
        batch = collate(items, self._prepare.num_tokens(budget))
        return Chunk(batch, len(problems), tuple(problems))

    def close(self) -> None:
        """Ends what reads ahead."""
        self._stream.close()

    def _item(self, index: int, budget: int) -> tuple[dict[str, Any], list[str]]:
        """The arrays of an example or its replacement, and the problems of those it replaces."""
        problems: list[str] = []
        while len(problems) < _ATTEMPTS:
            attempt = len(problems)
            rng = np.random.default_rng((self._seed, index, *([attempt] if attempt else [])))
            name = f"example {index}"
            try:
                example = self._stream.near(index, rng) if attempt else self._stream[index]
                name = example["name"]
                return self._prepare(example, rng, budget), problems
            except (ValueError, OSError) as error:
                problems.append(str(with_name(error, name)))
        raise ValueError(
            f"{_ATTEMPTS} examples in a row could not be used; the first: {' '.join(problems[:3])}"
        )
