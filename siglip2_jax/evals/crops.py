"""Crops that evaluation protocols make before an image is resized for the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from PIL import Image

from siglip2_jax.preprocess.decode import ImageError, ImageSource, decode

Source = TypeVar("Source", bound=ImageSource)

CENTRE = 0.875
"""Share of each side that big_vision's classification and few-shot evaluators keep.

They resize to a square of `size / 0.875` and cut out the central `size`
(`configs/common_fewshot.py`, `configs/proj/image_text/common.py`). The same part of the image is
cut out here before it is resized, at whole pixels, so that any resolution can have it.
"""


def check_share(name: str, share: float) -> None:
    """Refuses a share that is not above 0 and at most 1.

    Raises:
      ValueError: it is outside that range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"{name}.crop is {share}; expected a share above 0 and at most 1")


def cut_border(image: Source, pixels: int) -> Source | Image.Image:
    """The image without `pixels` rows and columns at each side.

    An image that is unreadable, or too small for the cut, is returned unchanged.
    """
    return _cut(image, lambda side: pixels) if pixels else image


def cut_centre(image: Source, share: float) -> Source | Image.Image:
    """The central part of the image, with this share of its height and of its width.

    An unreadable image is returned unchanged.
    """
    return _cut(image, lambda side: round(side * (1 - share) / 2)) if share < 1 else image


def _cut(image: Source, margin: Callable[[int], int]) -> Source | Image.Image:
    try:
        # Not turned upright: the next decode does that, and all sides are cut alike.
        decoded = decode(image, exif=False)
    except ImageError:
        return image
    width, height = decoded.size
    left, top = margin(width), margin(height)
    if 2 * left >= width or 2 * top >= height:
        return image
    return decoded.crop((left, top, width - left, height - top))
