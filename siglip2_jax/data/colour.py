"""Random changes of colour, and blur; NumPy and Pillow only.

The photometric augmentations of DINO (arXiv 2104.14294, appendix), after BYOL (arXiv 2006.07733,
appendix B).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def _check_probability(transform: Any) -> None:
    if not 0 <= transform.probability <= 1:
        name = type(transform).__name__
        raise ValueError(f"{name}.probability must be from 0 to 1, got {transform.probability}")


@dataclass(frozen=True)
class ColorJitter:
    """Changes brightness, contrast, saturation and hue, in random order.

    The first three are multiplied by 1 plus or minus up to their strength; the hue is turned by up
    to its strength, where 1 is the whole circle.

    Attributes:
      brightness: strength, at least 0.
      contrast: strength, at least 0.
      saturation: strength, at least 0.
      hue: strength, 0 to 0.5.
      probability: how often, 0 to 1.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    probability: float = 0.8

    def __post_init__(self) -> None:
        _check_probability(self)
        strengths = (self.brightness, self.contrast, self.saturation, self.hue)
        if min(strengths) < 0 or self.hue > 0.5:
            raise ValueError(
                f"ColorJitter's strengths must be at least 0, and hue at most 0.5, got {strengths}"
            )

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """The example, with the colours of its image changed or as they are."""
        if rng.random() >= self.probability:
            return example
        image: Image.Image = example["image"]
        strengths = (self.brightness, self.contrast, self.saturation)
        for index in rng.permutation(4):
            if index == 3:
                image = turn_hue(image, rng.uniform(-self.hue, self.hue))
                continue
            strength = strengths[index]
            factor = rng.uniform(max(0, 1 - strength), 1 + strength)
            image = ENHANCERS[index](image).enhance(factor)
        return {**example, "image": image}


def turn_hue(image: Image.Image, turn: float) -> Image.Image:
    """An RGB image with its hue turned by `turn` of the circle, in steps of 1/256."""
    shift = round(turn * 256)
    if not shift:
        return image  # there and back again, colours would be rounded
    hue, saturation, value = image.convert("HSV").split()
    hue = hue.point([(level + shift) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


@dataclass(frozen=True)
class Grayscale:
    """Takes the colour away.

    Attributes:
      probability: how often, 0 to 1.
    """

    probability: float = 0.2

    def __post_init__(self) -> None:
        _check_probability(self)

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """The example, with its image in shades of grey (three equal channels) or as it is."""
        if rng.random() >= self.probability:
            return example
        return {**example, "image": example["image"].convert("L").convert("RGB")}


@dataclass(frozen=True)
class GaussianBlur:
    """Blurs.

    Attributes:
      radius: smallest and largest standard deviation, in pixels of the image as it is then;
        uniform between.
      probability: how often, 0 to 1.
    """

    radius: tuple[float, float] = (0.1, 2.0)
    probability: float = 0.5

    def __post_init__(self) -> None:
        _check_probability(self)
        if not 0 <= self.radius[0] <= self.radius[1]:
            raise ValueError(
                "GaussianBlur.radius must be two numbers in ascending order, at least 0, got "
                f"{self.radius}"
            )

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """The example, with its image blurred or as it is."""
        if rng.random() >= self.probability:
            return example
        blur = ImageFilter.GaussianBlur(rng.uniform(*self.radius))
        return {**example, "image": example["image"].filter(blur)}


@dataclass(frozen=True)
class Solarize:
    """Inverts the channel values from a threshold up.

    Attributes:
      threshold: 0 to 256 (which inverts nothing).
      probability: how often, 0 to 1.
    """

    threshold: int = 128
    probability: float = 0.2

    def __post_init__(self) -> None:
        _check_probability(self)
        if not 0 <= self.threshold <= 256:
            raise ValueError(f"Solarize.threshold must be from 0 to 256, got {self.threshold}")

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """The example, with its image solarized or as it is."""
        if rng.random() >= self.probability:
            return example
        return {**example, "image": ImageOps.solarize(example["image"], self.threshold)}
