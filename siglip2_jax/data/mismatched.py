"""A source with noise in it: pairs whose captions belong to other images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int64

from siglip2_jax.data.sources import Described, Examples, Source

FIELD = "mismatched"


@dataclass(frozen=True)
class Mismatched:
    """Examples of a source, some of which have each other's captions; to measure curation.

    Which ones is drawn once, and holds for every epoch. Each has all captions of another, so that
    every caption is still there as often as before. Examples have a field `mismatched`, true or
    false; `MarkMismatched` takes it to the batch.

    It is for data of which any example is read by itself: of a source that is read in blocks, it
    reads one by one.

    Attributes:
      source: where examples come from.
      share: of the examples that get the captions of others, above 0 and up to 1; the nearest
        number of examples that is not 1.
      seed: of the draw.
    """

    source: Source
    share: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"Mismatched.share must be above 0 and at most 1, got {self.share}")

    def open(self) -> Examples:
        """Draws who has whose captions.

        Raises:
          ValueError: there are fewer than two examples.
        """
        examples = self.source.open()
        size = len(examples)
        if size < 2:
            raise ValueError(f"{size} example cannot have another's captions; give at least two")
        owners, count = np.arange(size), max(2, math.floor(self.share * size + 0.5))
        chosen = np.random.default_rng(self.seed).permutation(size)[:count]
        owners[chosen] = np.roll(chosen, 1)  # one cycle, in which nobody has their own
        return _Mismatched(examples, owners)


class _Mismatched:
    def __init__(self, examples: Examples, owners: Int64[np.ndarray, " n"]) -> None:
        self._examples, self._owners = examples, owners

    def __len__(self) -> int:
        return len(self._owners)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        example, owner = self._examples[index], int(self._owners[index])
        if owner == index:
            return {**example, FIELD: False}
        examples = self._examples
        other = examples.without_image if isinstance(examples, Described) else examples.__getitem__
        return {**example, "captions": other(owner)["captions"], FIELD: True}


@dataclass(frozen=True)
class MarkMismatched:
    """Adds `Batch.fields["mismatched"]`, 1 where an image has another's captions; a transform."""

    scale_free: ClassVar[bool] = True

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """The example with the field, 0 where its source says nothing."""
        example["fields"][FIELD] = np.array(example.get(FIELD, False), np.float32)
        return example
