"""Queries to a decoder and its answers: texts that begin, and end, as those of training.

The tasks and their texts are those of `siglip2_jax.data.targets` (LocCa, arXiv 2403.19596; SigLIP
2, arXiv 2502.14786, section 2.2). Boxes are pixels here and shares of the image there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from siglip2_jax.data.boxes import BoxText
from siglip2_jax.data.regions import Box
from siglip2_jax.data.targets import PREFIXES, opening, parse
from siglip2_jax.preprocess.decode import ImageSource
from siglip2_jax.preprocess.tokenizer import Tokenizer

PixelBox = tuple[float, float, float, float]
"""Left, top, right and bottom (xmin, ymin, xmax, ymax) in pixels of the upright image."""


class Query(NamedTuple):
    """An image and what is wanted: its caption, the box of a phrase, or a phrase for a box.

    Attributes:
      image: a path, encoded bytes, a PIL image or a uint8 array `[H, W, 3]`.
      phrase: whose box is wanted.
      box: whose phrase is wanted.
    """

    image: ImageSource
    phrase: str | None = None
    box: PixelBox | None = None


Group = Sequence[tuple[int, Query]]
"""Queries about one image, at least one of them, each with its place in the call, for its draws."""


class Answer(NamedTuple):
    """Answer of a decoder to a query.

    Attributes:
      text: the caption or phrase.
      box: of the phrase; None for captions, and where what was written is no box.
      score: sum of the natural logarithms of the probabilities of the tokens written.
      size: width and height of the upright image.
    """

    text: str
    box: PixelBox | None
    score: float
    size: tuple[int, int]


def first_ids(
    query: Query, size: tuple[int, int], tokenizer: Tokenizer, boxes: BoxText, length: int
) -> list[int]:
    """Prompt ids of a query: the ids with which all training sequences of its kind begin.

    Args:
      query: what is asked.
      size: width and height of its upright image.
      tokenizer: the decoder's.
      boxes: how it writes boxes.
      length: positions of the decoder.

    Raises:
      ValueError: the phrase is blank or too long, or the box is not one within the image.
    """
    if query.phrase is not None:
        if not query.phrase.strip():
            raise ValueError("a phrase to locate is blank; say what to look for")
        ids = opening(tokenizer, "refer", query.phrase)
    elif query.box is not None:
        ids = opening(tokenizer, "ground", boxes.write(_as_shares(query.box, size)))
    else:
        ids = tokenizer.encode(PREFIXES["caption"])
    if len(ids) >= length:
        raise ValueError(
            f"{query.phrase or 'the prompt'!r:.60} takes {len(ids)} tokens, which leaves no "
            f"room among the decoder's {length} positions; make it shorter"
        )
    return ids


def read_answer(
    text: str, score: float, query: Query, size: tuple[int, int], boxes: BoxText
) -> Answer:
    """Parses a sequence as the answer to a query about an image of this width and height."""
    parsed = parse(text, boxes)
    if query.phrase is None:
        return Answer(parsed.text, query.box, score, size)
    if parsed.box is None:
        return Answer(query.phrase, None, score, size)
    (width, height), (ymin, xmin, ymax, xmax) = size, parsed.box
    box = (xmin * width, ymin * height, xmax * width, ymax * height)
    return Answer(query.phrase, box, score, size)


def _as_shares(box: PixelBox, size: tuple[int, int]) -> Box:
    (left, top, right, bottom), (width, height) = box, size
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ValueError(
            "a box must be left < right and top < bottom in pixels of the upright image, which is "
            f"{width} wide and {height} high, got left, top, right, bottom = {list(box)}"
        )
    return (top / height, left / width, bottom / height, right / width)
