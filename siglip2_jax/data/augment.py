"""Crops, flips and sizes of training images; NumPy and Pillow only.

An example's regions (`data.regions`) move with the pixels. Captions and phrases stay as they are,
also where they name a side.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, sqrt
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from siglip2_jax.data.regions import cropped, flipped, moved


@dataclass(frozen=True)
class RandomResizedCrop:
    """Keeps a random part of the image, which the preprocessing then resizes as it does any image.

    The Inception crop (Szegedy et al., arXiv 1409.4842, section 6), with two differences: its shape
    is relative to that of the image, which at native resolution stays recognisable, and shapes that
    do not fit are never drawn, so that nothing is tried again.

    Attributes:
      area: smallest and largest share of the image's area, 0 to 1; uniform between.
      aspect: smallest and largest ratio of the crop's width / height to the image's, around 1; the
        logarithm is uniform over what fits.
      min_visible: share of a region's area that must be in the crop, 0 to 1, for it to be kept;
        what is thinner than a pixel is dropped too.
    """

    area: tuple[float, float] = (0.2, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    min_visible: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(
                "RandomResizedCrop.area must be two shares of the image in ascending order, above "
                f"0 and up to 1, got {self.area}"
            )
        if not 0 < self.aspect[0] <= 1 <= self.aspect[1] < np.inf:
            raise ValueError(
                "RandomResizedCrop.aspect must be two ratios, one in (0, 1] and one from 1 up, got "
                f"{self.aspect}"
            )
        if not 0 <= self.min_visible <= 1:
            raise ValueError(
                f"RandomResizedCrop.min_visible must be from 0 to 1, got {self.min_visible}"
            )

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """The example with its image cropped; sides are rounded to whole pixels, at least one.

        Raises:
          ValueError: its regions are malformed.
        """
        image: Image.Image = example["image"]
        area = rng.uniform(*self.area)
        # The crop is sqrt(area * ratio) of the image's width and sqrt(area / ratio) of its height.
        low, high = max(self.aspect[0], area), min(self.aspect[1], 1 / area)
        ratio = np.exp(rng.uniform(log(low), log(high)))
        width = max(1, round(image.width * min(1, sqrt(area * ratio))))
        height = max(1, round(image.height * min(1, sqrt(area / ratio))))
        left = int(rng.integers(image.width - width + 1))
        top = int(rng.integers(image.height - height + 1))
        window = left, top, left + width, top + height
        regions = moved(example, lambda x: cropped(x, image.size, window, self.min_visible))
        return {**example, "image": image.crop(window), **regions}


@dataclass(frozen=True)
class HorizontalFlip:
    """Swaps left and right; captions and phrases that name a side are not changed.

    Attributes:
      probability: how often, 0 to 1.
    """

    scale_free: ClassVar[bool] = True

    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(
                f"HorizontalFlip.probability must be from 0 to 1, got {self.probability}"
            )

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """The example, with its image flipped or as it is.

        Raises:
          ValueError: its regions are malformed.
        """
        if rng.random() >= self.probability:
            return example
        image = example["image"].transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return {**example, "image": image, **moved(example, flipped)}


@dataclass(frozen=True)
class Shrink:
    """Makes large images smaller before slower transforms see them; small ones stay as they are.

    Attributes:
      side: the longer side in pixels that an image may have; some more than what the model reads
        loses nothing to it.
    """

    scale_free: ClassVar[bool] = True

    side: int

    def __post_init__(self) -> None:
        if self.side < 1:
            raise ValueError(f"Shrink.side must be at least 1, got {self.side}")

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """The example, with a longer side of at most `side` pixels."""
        image: Image.Image = example["image"]
        share = self.side / max(image.size)
        if share >= 1:
            return example
        width, height = (max(1, round(share * x)) for x in image.size)
        small = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
        return {**example, "image": small}
