"""Captions in training: which field of an example one is drawn from, and words left out of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from siglip2_jax.data.example import CAPTION_FIELDS, RESERVED, ExampleError, as_captions

CAPTIONS = "captions"


@dataclass(frozen=True)
class CaptionFields:
    """Draws the caption of an example from fields of its source by weight; a transform.

    TIPSv2 (arXiv 2604.12012, section 3.5) trains on alt-texts, short synthetic captions and long
    ones: long ones alone make pairs too easy to tell apart. The draw is a part of the example's
    own randomness, so that it is another one each epoch and the same whenever that is read again.

    Put it before `DecoderTargets`, which write the caption that is drawn. What is longer than the
    text tower reads is cut.

    Attributes:
      weights: fields, each with its weight: its share of the draws, up to normalisation. "captions"
        is what the source takes for captions; the others are fields of its rows by name, each with
        a text or several, of which every one is as likely. A row may have null in a field: the
        weight goes to those that have a text.
    """

    scale_free: ClassVar[bool] = True

    weights: tuple[tuple[str, float], ...]

    def __post_init__(self) -> None:
        names = [name for name, _ in self.weights]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"CaptionFields.weights must name each field once, got {names}")
        taken = RESERVED.union(CAPTION_FIELDS) - {CAPTIONS}
        for name, weight in self.weights:
            if name in taken:
                raise ValueError(
                    f"CaptionFields.weights names {name!r}, which no example has as a field of its "
                    f"own; captions of its source are {CAPTIONS!r}"
                )
            if not (weight > 0 and math.isfinite(weight)):
                raise ValueError(
                    f"CaptionFields.weights must be above 0, got {weight} for {name!r}"
                )

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """The example with another `text`; one without any text stays as it is.

        Raises:
          ValueError: a field is missing, or holds something that is not a text.
        """
        if not example["text"].strip():
            return example  # a blank one, from which shapes are known
        name, texts, weights = example["name"], [], []
        for field, weight in self.weights:
            if field not in example:
                raise ExampleError(
                    f"{name}: it has no field {field!r}, which CaptionFields draws captions from; "
                    "give it null where there is no such caption."
                )
            if captions := as_captions(example[field], name):
                texts.append(captions)
                weights.append(weight)
        if not texts:
            return example
        captions = texts[rng.choice(len(texts), p=np.divide(weights, sum(weights)))]
        return {**example, "text": captions[rng.integers(len(captions))]}


@dataclass(frozen=True)
class DropWords:
    """Leaves words out of captions at random; a transform.

    Small data is known by heart sooner by its captions than by its images: a caption that never
    reads the same twice is no key to its image. At least one word stays.

    Attributes:
      probability: that a word is left out, at least 0 and below 1.
    """

    scale_free: ClassVar[bool] = True

    probability: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.probability < 1:
            raise ValueError(
                f"DropWords.probability must be at least 0 and below 1, got {self.probability}"
            )

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """The example with another `text`, its words with one space between."""
        words = example["text"].split()
        if not words:
            return example
        kept = rng.random(len(words)) >= self.probability
        kept[rng.integers(len(words))] |= not kept.any()
        return {**example, "text": " ".join(np.compress(kept, words))}
