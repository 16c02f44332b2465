"""Referring expressions of an image, each with its box, and their reader from JSON lines.

`refer_files.Refer` reads RefCOCO, RefCOCO+ and RefCOCOg as they are published.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from etils import epath

from siglip2_jax.data.regions import Box, from_coco, read_regions
from siglip2_jax.data.text import read_rows


class Expression(NamedTuple):
    """Referring expression: an image, a text and the box that the text refers to.

    Attributes:
      image: path of the image.
      image_id: the image in its data set: COCO's number, or the `file` of a row.
      text: the expression.
      box: ymin, xmin, ymax, xmax as shares of the upright image, with an area.
    """

    image: str
    image_id: int | str
    text: str
    box: Box


@runtime_checkable
class Expressions(Protocol):
    """Source of expressions: cheap to make, so that configs can hold it."""

    def open(self) -> list[Expression]:
        """Reads the expressions; images are read later.

        Raises:
          ValueError or OSError: a file is missing or malformed.
        """
        ...

    def held_out(self) -> set[int | str]:
        """The `image_id` of every image that any split but "train" uses."""
        ...


def held_out_images(sources: Iterable[Expressions]) -> set[int | str]:
    """Images to leave out of training, for the "clean" numbers of LocCa and SigLIP 2.

    LocCa (arXiv 2403.19596) trains on RefCOCO, RefCOCO+ and RefCOCOg together. They share images,
    and what is for validation or testing in one is for training in another: of all their training
    expressions, those on an image that any of them holds out are removed (as in big_vision's
    `datasets/refcoco/refcoco.py`, "refcocox_combined"). Captions and boxes of these images from
    elsewhere, COCO's own for instance, should go too.

    Args:
      sources: of every set that is trained on or measured, one split of each is enough.

    Returns:
      Their `image_id`s.
    """
    return set().union(*(source.held_out() for source in sources))


@dataclass(frozen=True)
class ExpressionFile:
    """Expressions in a file of JSON lines.

    A row is `{"file", "expression", "split", "box": [ymin, xmin, ymax, xmax]}` with the box as
    shares of the image, or has instead of `box` the keys `bbox`, [x, y, width, height] in pixels as
    in COCO, and `width` and `height` of the image it was drawn on.

    Attributes:
      path: the file, local or `gs://`.
      images: directory that `file` is relative to.
      split: which rows; None means all.
    """

    path: str
    images: str
    split: str | None = None

    def open(self) -> list[Expression]:
        """The expressions of the split.

        Raises:
          ValueError: the file is missing or malformed, or the split is empty.
        """
        rows = [
            (label, row)
            for label, row in self._rows()
            if self.split is None or row.get("split") == self.split
        ]
        if not rows:
            condition = "s" if self.split is None else f" has split={self.split!r}"
            raise ValueError(f"{self.path}: no row{condition}")
        return [_expression(row, self.images, label) for label, row in rows]

    def held_out(self) -> set[int | str]:
        """The `file` of every row whose split is not "train".

        Raises:
          ValueError: the file is missing or malformed.
        """
        return {row["file"] for _, row in self._rows() if row.get("split") != "train"}

    def _rows(self) -> list[tuple[str, dict[str, Any]]]:
        """Rows, each with its name in errors."""
        path = epath.Path(self.path)
        if not path.is_file():
            raise ValueError(f"{path}: no such file; expected JSON lines, a row an expression")
        rows = []
        for number, row in read_rows(path):
            label = f"{path}, line {number}"
            texts = [row.get(k) for k in ("file", "expression")] if isinstance(row, dict) else [row]
            if len(texts) != 2 or not all(isinstance(x, str) and x.strip() for x in texts):
                raise ValueError(
                    f'{label}: expected an object with the texts "file" and "expression", found '
                    f"{row!r:.80}"
                )
            rows.append((label, row))
        return rows


def _expression(row: Mapping[str, Any], images: str, label: str) -> Expression:
    if "bbox" in row:
        box = box_of_pixels(row["bbox"], row.get("width"), row.get("height"), label)
    else:
        regions = [{"box": row.get("box"), "phrase": row["expression"]}]
        box = read_regions({"name": label, "regions": regions})[0].box
    return Expression(os.path.join(images, row["file"]), row["file"], row["expression"], box)


def box_of_pixels(bbox: Any, width: Any, height: Any, label: str) -> Box:
    """A box of COCO's kind as shares, clipped to its image.

    Args:
      bbox: x, y, width and height in pixels.
      width: of the image.
      height: of the image.
      label: its name in errors.

    Raises:
      ValueError: it is malformed, or has no area in the image.
    """
    boxes = [{"category": "expression", "bbox": bbox}]
    regions = from_coco({"name": label, "boxes": boxes, "width": width, "height": height})
    if not regions:
        raise ValueError(f"{label}: the bbox {bbox} has no area in an image of {width} x {height}")
    return regions[0].box
