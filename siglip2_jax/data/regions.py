"""Parts of an image with phrases that say what they show.

The field `regions` of an example is a list of objects {"box": [ymin, xmin, ymax, xmax], "phrase":
text, "score": 0 to 1}, as JSON holds them, so that every source and pack carries it. Boxes are
shares of the height and width of the upright image: what resizing leaves as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeGuard

# ymin, xmin, ymax, xmax; 0 to 1.
Box = tuple[float, float, float, float]

# Of a pixel: what rounding of shares may take from a box that is one pixel thick.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Region:
    """A box and what it shows.

    Attributes:
      box: ymin, xmin, ymax, xmax as shares of the image's height and width, 0 to 1; with an area.
      phrase: a text that is not blank.
      score: how sure its source is, 0 to 1.

    Raises:
      ValueError: a value is out of its range.
    """

    box: Box
    phrase: str
    score: float = 1.0

    def __post_init__(self) -> None:
        ymin, xmin, ymax, xmax = self.box
        if not (0 <= ymin < ymax <= 1 and 0 <= xmin < xmax <= 1):
            raise ValueError(
                "a box must be ymin, xmin, ymax, xmax with 0 <= ymin < ymax <= 1 and 0 <= xmin < "
                f"xmax <= 1, as shares of the image, got {list(self.box)}"
            )
        if not self.phrase.strip():
            raise ValueError("a phrase must not be blank")
        if not 0 <= self.score <= 1:
            raise ValueError(f"a score must be from 0 to 1, got {self.score}")

    def as_dict(self) -> dict[str, Any]:
        """The object that an example's `regions` holds."""
        return {"box": list(self.box), "phrase": self.phrase, "score": self.score}


def read_regions(example: Mapping[str, Any]) -> tuple[Region, ...]:
    """The regions of an example; none where the field is missing, null or empty.

    A region without a score has 1.

    Raises:
      ValueError: the field is malformed; one sentence that names the example.
    """
    values = example.get("regions")
    if values is None:
        return ()
    name = example.get("name", "an example")
    if not isinstance(values, list | tuple):
        raise ValueError(f"{name}: regions must be a list, found {values!r:.60}.")
    regions = []
    for i, value in enumerate(values):
        try:
            regions.append(_region(value))
        except ValueError as error:
            raise ValueError(f"{name}: region {i} cannot be used ({error}).") from error
    return tuple(regions)


def from_coco(row: Mapping[str, Any]) -> tuple[Region, ...]:
    """The annotated boxes of a row of the kind of COCO's instances (arXiv 1405.0312), as regions.

    The phrase is the category, the score 1. Boxes are clipped to the image; crowds, and boxes
    without an area in the image, are left out.

    Args:
      row: `boxes`, a list of objects with `category`, `bbox` [x, y, width, height] in pixels and
        optionally `iscrowd`, or null or empty; `width` and `height` of the image in pixels.

    Raises:
      ValueError: the row is malformed; one sentence that names it by its `name` or `file`.
    """
    boxes, name = row.get("boxes"), row.get("name") or row.get("file") or "a row"
    if boxes is None:
        return ()
    if not isinstance(boxes, list | tuple):
        raise ValueError(f"{name}: boxes must be a list, found {boxes!r:.60}.")
    if not boxes:
        return ()
    sides = row.get("width"), row.get("height")
    if not (_numbers(sides, 2) and min(sides) > 0):
        raise ValueError(
            f"{name}: boxes in pixels need the image's width and height, found {sides}."
        )
    width, height = sides
    regions = [_coco_region(box, width, height, f"{name}: box {i}") for i, box in enumerate(boxes)]
    return tuple(region for region in regions if region is not None)


def moved(
    example: Mapping[str, Any], change: Callable[[Region], Region | None]
) -> dict[str, list[dict[str, Any]]]:
    """The field `regions` after a change of geometry; nothing where the example has none.

    Args:
      example: before the change; left as it is.
      change: gives the region in the new image, or None if it is not in there.
    """
    if not example.get("regions"):
        return {}
    regions = map(change, read_regions(example))
    return {"regions": [region.as_dict() for region in regions if region is not None]}


def cropped(
    region: Region, size: tuple[int, int], window: tuple[int, int, int, int], min_visible: float
) -> Region | None:
    """The part of a region that is in a crop.

    Args:
      region: of the whole image.
      size: width and height of the image, in pixels.
      window: left, top, right and bottom of the crop, in pixels.
      min_visible: share of the box's area that must be in the crop, 0 to 1.

    Returns:
      The region in the crop; None where less of it is left, or it is thinner than a pixel.
    """
    (width, height), (left, top, right, bottom) = size, window
    ymin, xmin, ymax, xmax = region.box
    area = (ymax - ymin) * height * (xmax - xmin) * width
    ymin, ymax = (min(max(y * height, top), bottom) - top for y in (ymin, ymax))
    xmin, xmax = (min(max(x * width, left), right) - left for x in (xmin, xmax))
    sides = ymax - ymin, xmax - xmin
    if min(sides) < 1 - _ROUNDING or math.prod(sides) < (min_visible - _ROUNDING) * area:
        return None
    height, width = bottom - top, right - left
    box = (ymin / height, xmin / width, ymax / height, xmax / width)
    return Region(box, region.phrase, region.score)


def flipped(region: Region) -> Region:
    """The region in the mirror image; a phrase that names a side is not changed."""
    ymin, xmin, ymax, xmax = region.box
    return Region((ymin, 1 - xmax, ymax, 1 - xmin), region.phrase, region.score)


def _numbers(values: object, count: int) -> TypeGuard[Sequence[int | float]]:
    """True for a list of so many finite numbers."""
    return (
        isinstance(values, list | tuple)
        and len(values) == count
        and all(isinstance(x, Real) and not isinstance(x, bool) for x in values)
        and all(map(math.isfinite, values))
    )


def _region(value: object) -> Region:
    if not isinstance(value, Mapping):
        raise ValueError(f"expected an object with box and phrase, found {value!r:.60}")
    box, phrase, score = value.get("box"), value.get("phrase"), value.get("score", 1.0)
    if not _numbers(box, 4):
        raise ValueError(f"a box must be four numbers, found {box!r:.60}")
    if not isinstance(phrase, str):
        raise ValueError(f"a phrase must be a text, found {phrase!r:.60}")
    if not _numbers([score], 1):
        raise ValueError(f"a score must be a number, found {score!r:.60}")
    ymin, xmin, ymax, xmax = map(float, box)
    return Region((ymin, xmin, ymax, xmax), phrase, float(score))


def _coco_region(
    value: object, width: int | float, height: int | float, label: str
) -> Region | None:
    fields = value if isinstance(value, Mapping) else {}
    category, bbox = fields.get("category"), fields.get("bbox")
    if not (isinstance(category, str) and category.strip() and _numbers(bbox, 4)):
        raise ValueError(
            f"{label} must have a category and a bbox of four numbers, found {value!r:.80}."
        )
    xmin, xmax = (min(max(x / width, 0.0), 1.0) for x in (bbox[0], bbox[0] + bbox[2]))
    ymin, ymax = (min(max(y / height, 0.0), 1.0) for y in (bbox[1], bbox[1] + bbox[3]))
    if fields.get("iscrowd") or not (ymin < ymax and xmin < xmax):
        return None
    return Region((ymin, xmin, ymax, xmax), category)
