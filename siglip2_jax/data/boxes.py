"""Boxes as text: what a captioning decoder writes and reads with an ordinary tokenizer."""

from __future__ import annotations

import re
from dataclasses import dataclass

from siglip2_jax.data.regions import Box

SIDES: tuple[str, str, str, str] = ("ymin", "xmin", "ymax", "xmax")
_INTEGER = re.compile("[0-9]{1,9}")


@dataclass(frozen=True)
class BoxText:
    """Four integers with a space between, such as "12 0 340 500".

    LocCa (arXiv 2403.19596) writes boxes as integers. Their number and order in SigLIP 2 are not
    published; 0 to 500 is that of a LocCa reproduction, the order that of big_vision
    (`configs/proj/reward_tune/detection_reward.py`).

    Attributes:
      bins: the integer that stands for the right or lower border of the image; 0 is the left or
        upper one.
      order: the sides of the box, in the order written.
    """

    bins: int = 500
    order: tuple[str, str, str, str] = SIDES

    def __post_init__(self) -> None:
        if self.bins < 1:
            raise ValueError(f"BoxText.bins must be at least 1, got {self.bins}")
        if sorted(self.order) != sorted(SIDES):
            raise ValueError(
                f"BoxText.order must name {', '.join(SIDES)} once each, got {self.order}"
            )

    def write(self, box: Box) -> str:
        """The text of a box, each side rounded to the nearest integer."""
        sides = dict(zip(SIDES, box, strict=True))
        return " ".join(str(round(sides[side] * self.bins)) for side in self.order)

    def read(self, text: str) -> Box | None:
        """The box of a text, with any white space; None where the text is no box.

        A box is four integers from 0 to `bins`; one that is thinner than a step has no area.
        """
        parts = text.split()
        if len(parts) != 4 or not all(map(_INTEGER.fullmatch, parts)):
            return None
        sides = dict(zip(self.order, map(int, parts), strict=True))
        ymin, xmin, ymax, xmax = (sides[side] for side in SIDES)
        if not (ymin <= ymax <= self.bins and xmin <= xmax <= self.bins):
            return None
        return (ymin / self.bins, xmin / self.bins, ymax / self.bins, xmax / self.bins)
