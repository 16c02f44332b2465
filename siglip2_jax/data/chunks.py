"""The pieces of work of a pipeline: parts of one step's examples, read, prepared and stacked."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cached_property, partial
from typing import Any, Protocol, runtime_checkable

import numpy as np

from siglip2_jax.data.blocks.layout import Layout
from siglip2_jax.data.collate import blank_row, write_row
from siglip2_jax.data.example import ExampleError, with_name
from siglip2_jax.data.patience import PATIENCE, patiently
from siglip2_jax.data.prepare import Prepare
from siglip2_jax.data.stores import client
from siglip2_jax.data.workers.ring import batch_bytes
from siglip2_jax.data.workers.work import Outcome
from siglip2_jax.types import Batch

# So many bad examples in a row are no accident.
_ATTEMPTS = 20
SHOWN = 3  # problems that are told of a piece of work


@runtime_checkable
class Stream(Protocol):
    """Raw examples by global index, endless. Picklable before use, thread-safe."""

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """Example `index`; ValueError where it cannot be used, OSError where it is not read."""
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


class Chunks:
    """All pieces of work of a reading, as `work.Work`. Picklable if its parts are.

    All randomness of example g comes from `default_rng((seed, g))`; that of the replacement at
    attempt a, its choice included, from `default_rng((seed, g, a))`. Only an example whose content
    cannot be used is replaced: what is wrong with the machine is a SourceError, after `patience`
    seconds where it may pass.
    """

    def __init__(
        self,
        stream: Stream,
        layout: Layout,
        prepare: Prepare,
        seed: int,
        patience: float = PATIENCE,
    ) -> None:
        self.layout = layout
        self._stream, self._prepare, self._seed = stream, prepare, seed
        self._patience = patience

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
            for budget in self.layout.reading.budgets
        }

    def buffer_bytes(self) -> int:
        """Memory of the largest step's batch."""
        sizes = dict(self.layout.reading.sizes)
        hosts = self.layout.process_count
        rows = ((row, sizes[budget] // hosts) for budget, row in self._rows.items())
        return max((batch_bytes(*x) for x in rows), default=0)

    def parts(self, step: int, /) -> int:
        """Number of pieces of a step."""
        return self.layout.parts

    def owner(self, step: int, part: int, /) -> int:
        """Number of the worker that makes a piece, modulo their number."""
        return part

    def like(self, step: int, /) -> tuple[Batch, int]:
        """A batch of one row like those of a step, and the number of its rows."""
        _, budget, size, _ = self.layout.reading[step]
        return self._rows[budget], size // self.layout.process_count

    def fill(self, step: int, part: int, out: Batch, /) -> Outcome:
        """Prepares the examples of a piece of work, each in its row of the step's batch."""
        _, budget, *_ = self.layout.reading[step]
        rows, indices = self.layout.rows(step, part), self.layout.indices(step, part)
        problems: list[str] = []
        with self._stream.using(step, part):
            for row, index in zip(rows, indices, strict=True):
                item, its_problems = self._item(index, budget)
                write_row(item, out, row)
                problems += its_problems
        return Outcome(len(problems), tuple(problems[:SHOWN]), client.take())

    def close(self) -> None:
        """Ends what reads ahead."""
        self._stream.close()

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
        name = f"example {index}"
        try:
            example = self._stream.near(index, rng) if attempt else self._stream[index]
            name = example["name"]
            return self._prepare(example, rng, budget)
        except ValueError as error:
            raise with_name(error, name) from error
