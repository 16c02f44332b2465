"""Images given one or several at once, and results about them, as lists."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from os import PathLike
from typing import Literal, TypeVar, cast

import numpy as np
from PIL.Image import Image

from siglip2_jax.preprocess.decode import ImageError, ImageSource

T = TypeVar("T")
Images = ImageSource | Iterable[ImageSource]
OnError = Literal["warn", "raise"]

_ONE = (str, bytes, Image, PathLike, np.ndarray)


def several(items: T | Iterable[T]) -> Iterable[T]:
    """Puts a single image or text into a list, and leaves several as they are."""
    return cast(Iterable[T], [items] if isinstance(items, _ONE) else items)


def pairs(images: Images, items: Iterable[T], name: str) -> list[tuple[ImageSource, T]]:
    """Images, each with the item at its place; errors call the items `name`.

    Raises:
      ValueError: there are not as many items as images.
    """
    images, items = list(several(images)), list(items)
    if len(images) != len(items):
        raise ValueError(
            f"there are {len(images)} images and {len(items)} {name}; give one for each image"
        )
    return list(zip(images, items, strict=True))


def collect(
    results: Iterable[T | ImageError],
    on_error: OnError,
    consequence: str = "nothing is written about it",
) -> list[T | None]:
    """Collects results, with None for unreadable images.

    Args:
      results: of images in order.
      on_error: "warn", with the error and its consequence, or "raise".
      consequence: for the warning.

    Raises:
      ImageError: an image is unreadable and `on_error` is "raise".
    """
    answers = []
    for answer in results:
        if isinstance(answer, ImageError):
            if on_error == "raise":
                raise answer
            warnings.warn(f"{answer}; {consequence}", stacklevel=3)
            answer = None
        answers.append(answer)
    return answers
