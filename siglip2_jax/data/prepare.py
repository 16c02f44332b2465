"""Preparation: an example to the arrays of one row; NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, isqrt
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from siglip2_jax.data.example import ExampleError
from siglip2_jax.data.lengths import Aspect
from siglip2_jax.preprocess.decode import ImageSource
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.preprocess.patches import ImagePatches, patchify
from siglip2_jax.preprocess.resize import resize_antialias
from siglip2_jax.preprocess.tokenizer import Tokenizer, TokenizerError

# A scaled decode keeps this many times the sides that the resize needs: closer to 1, what libjpeg
# leaves out begins to show, at 1.5 it is less than what the choice of the filter changes.
SCALED_DECODE_MARGIN = 1.5


@dataclass(frozen=True)
class Views:
    """Further images of one example, such as crops; in a batch they are `Patches` [B, V, N, P].

    Attributes:
      images: V images, as many in every example.
      num_tokens: N, the length that each is padded to.
    """

    images: tuple[ImagePatches, ...]
    num_tokens: int


# What one example gives to a batch.
Value = ImagePatches | Views | Shaped[np.ndarray, "..."] | dict[str, Shaped[np.ndarray, "..."]]


@runtime_checkable
class Transform(Protocol):
    """Changes an example before it becomes arrays: crops, flips, views, regions. Picklable.

    The example has `image`, a Pillow image in RGB; `text`, the caption chosen; `budget`, the
    number of patches an image may have in this step; and everything that its source gave. To add
    an array of one's own to the batch, put it, or `Views`, into the dict `example["fields"]`: it
    becomes `Batch.fields[key]`, stacked. Every example must give the same fields in the same
    shapes; so must a blank one with an empty text and without any field of a source, from which
    the shapes are known before data is read.

    A transform that neither cuts pieces out of the image nor counts in its pixels may say so with
    a class attribute `scale_free = True`; a scaled decode is only for those.
    """

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """The changed example.

        Args:
          example: not to be changed in place, but for `fields`.
          rng: the only source of randomness.

        Raises:
          ValueError: the example cannot be used; another one takes its place.
        """
        ...


@dataclass(frozen=True)
class Prepare:
    """Makes the arrays of examples. Picklable.

    Attributes:
      preprocess: how images become patches.
      tokenizer: how captions become ids.
      transforms: what is done before, in this order.
      aspect: at native resolution, "keep" for SigLIP 2's own resize, "square" to squash to the
        largest square grid within the budget.
      scaled_decode: decode large JPEGs at 1/2, 1/4 or 1/8 of their size (see `decode`), to sides
        of at least `SCALED_DECODE_MARGIN` times those that they are resized to. On sharp images,
        images differ from those of a full decode by 1.4 grey levels on average at 1/2 and by 2.2
        at 1/4 (bilinear from bicubic: 1.8 and 2.3), and rounded sides may cost or give a row or
        column of patches.
      pixels: the dtype of patches in batches, "float32" or "bfloat16".
    """

    preprocess: ImagePreprocessor
    tokenizer: Tokenizer
    transforms: tuple[Transform, ...] = ()
    aspect: Aspect = "keep"
    scaled_decode: bool = False
    pixels: str = "float32"

    def __post_init__(self) -> None:
        if self.aspect not in ("keep", "square"):
            raise ValueError(f'aspect must be "keep" or "square", got {self.aspect!r}')
        if self.aspect == "square" and self.preprocess.mode != "reference":
            raise ValueError(
                'aspect "square" is only there in preprocessing mode "reference", got '
                f'"{self.preprocess.mode}"'
            )
        if self.scaled_decode:
            check_scaled_decode(self.preprocess.antialiased, self.transforms)

    def __call__(
        self, example: dict[str, Any], rng: np.random.Generator, budget: int
    ) -> dict[str, Value]:
        """The arrays of one example.

        Args:
          example: as a source gives it (see `data.example`); left as it is.
          rng: chooses one of its captions, then serves the transforms.
          budget: patches an image may have; not used at fixed resolution.

        Returns:
          `image`, patches and grid; `text`, ids [T]; and the fields of the transforms.

        Raises:
          ValueError: it has no caption, its image cannot be read (ImageError), or a transform
            refuses it.
        """
        name, captions = example["name"], example["captions"]
        if not captions:
            raise ExampleError(f"{name}: it has no caption.")
        image = self._decode(example["image"], budget, name)
        text = captions[rng.integers(len(captions))]
        example = {**example, "image": image, "text": text, "budget": budget, "fields": {}}
        for transform in self.transforms:
            example = transform(example, rng)
        try:
            ids = self.tokenizer(example["text"]).ids[0]
        except TokenizerError as error:
            raise ExampleError(f"{name}: {error}.") from error
        return {**example["fields"], "image": self._patches(example["image"], budget), "text": ids}

    def num_tokens(self, budget: int) -> int:
        """Patches that images are padded to: the budget, or all at fixed resolution."""
        return self.preprocess.num_tokens(budget)

    def _decode(self, source: ImageSource, budget: int, name: str) -> Image.Image:
        def least_size(size: tuple[int, int]) -> tuple[int, int]:
            if self._squared:
                height = width = isqrt(budget) * self.preprocess.patch_size
            else:
                height, width = self.preprocess.resized(size, budget)
            return with_margin(height, width)

        return self.preprocess.open(source, name, least_size if self.scaled_decode else None)

    @property
    def _squared(self) -> bool:
        return self.aspect == "square" and self.preprocess.image_size is None

    def _patches(self, image: Image.Image, budget: int) -> ImagePatches:
        if not self._squared:
            return self.preprocess.to_patches(image, budget)
        patch_size, side = self.preprocess.patch_size, isqrt(budget)
        length = side * patch_size
        pixels = resize_antialias(np.asarray(image), (length, length))
        return patchify(pixels, patch_size) / np.float32(127.5) - np.float32(1), (side, side)


def with_margin(height: int, width: int) -> tuple[int, int]:
    """The least sides of a scaled decode of an image that is resized to these."""
    return ceil(SCALED_DECODE_MARGIN * height), ceil(SCALED_DECODE_MARGIN * width)


def check_scaled_decode(antialiased: bool, transforms: Sequence[Transform]) -> None:
    """Makes sure that a scaled decode gives nearly what a full one does.

    Args:
      antialiased: whether the resize is (`ImagePreprocessor.antialiased`).
      transforms: what is done to the image before.

    Raises:
      ValueError: it would not.
    """
    if not antialiased:
        raise ValueError(
            'scaled_decode smooths images, which preprocessing mode "reference" does not at fixed '
            'resolution, so evaluation would see others; turn it off, or train in mode "hf"'
        )
    for transform in transforms:
        if not getattr(transform, "scale_free", False):
            raise ValueError(
                f"scaled_decode leaves fewer pixels than {type(transform).__name__} may need; turn "
                "it off, or set scale_free = True on a transform that neither crops nor counts in "
                "pixels"
            )
