"""Annotators, the sources of an image's regions: boxes drawn by people, or a detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from PIL.Image import Image

from siglip2_jax.data.regions import Region, from_coco
from siglip2_jax.data.tools.ngrams import ngrams


@runtime_checkable
class Annotator(Protocol):
    """Finds the regions of examples. Its `repr` tells everything that decides the result."""

    def __call__(self, image: Image, example: Mapping[str, Any]) -> Sequence[Region]:
        """The regions of one example.

        Args:
          image: upright, in RGB.
          example: what its source gave (see `data.example`).

        Raises:
          ValueError: the example cannot be used; one sentence that names it.
        """
        ...


@runtime_checkable
class Detector(Protocol):
    """An open-vocabulary object detector. Its `repr` tells everything that decides the result."""

    def detect(self, image: Image, queries: Sequence[str]) -> list[Region]:
        """Boxes of an RGB image, each with the query that fits it best and its score."""
        ...


@dataclass(frozen=True)
class Annotations:
    """The boxes of the rows themselves, of COCO's kind (see `regions.from_coco`)."""

    def __call__(self, image: Image, example: Mapping[str, Any]) -> Sequence[Region]:
        """The example's `boxes`.

        Raises:
          ValueError: they are malformed, or were not drawn on this image: its shape is another.
        """
        regions = from_coco(example)
        if regions:
            width, height = example["width"], example["height"]
            # Copies are smaller than the original, by whole pixels; turned ones do not fit.
            scale = max(image.width / width, image.height / height)
            if abs(image.width - width * scale) > 1 or abs(image.height - height * scale) > 1:
                raise ValueError(
                    f"{example['name']}: boxes are of an image of {width} x {height} pixels "
                    f"(width x height), the upright image has {image.width} x {image.height}."
                )
        return regions


@dataclass(frozen=True)
class Detections:
    """Regions that a detector finds for all n-grams of an example's captions, as OWLv2 does.

    SigLIP 2 (arXiv 2502.14786, section 2.2) looks for a fixed list of object categories as well.
    Its list, PaLI's, is not public; any other may be given.

    Attributes:
      detector: finds the boxes.
      longest: the greatest number of words of a query.
      categories: what to look for in every image, in place of the n-grams; none takes these.
    """

    detector: Detector
    longest: int = 10
    categories: tuple[str, ...] = ()

    def __call__(self, image: Image, example: Mapping[str, Any]) -> Sequence[Region]:
        """The regions found; none where the captions name nothing."""
        queries = self.categories
        if not queries:
            phrases = [ngrams(caption, self.longest) for caption in example["captions"]]
            queries = tuple(dict.fromkeys(query for queries in phrases for query in queries))
        return self.detector.detect(image, queries) if queries else []
