"""Patches against words, for `small_evidence.py`: retrieval and pointing on coco_mini."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from siglip2_jax.benchmarks.dense.open_vocabulary import patch_embeddings
from siglip2_jax.data.text import read_rows

Grid = tuple[int, int]


def resize(plane: np.ndarray, size: Grid, box: bool = False) -> np.ndarray:
    """A plane of numbers with other rows and columns, by bilinear interpolation or means."""
    kind = Image.Resampling.BOX if box else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(plane.astype(np.float32)).resize(size[::-1], kind))


class Query(NamedTuple):
    """A category in an image.

    Attributes:
      category: its name.
      patches: true where its polygons cover most of a patch, of the image's grid [rows * columns].
      box: left, top, right, bottom as shares of the image, where it has one box; else None.
    """

    category: str
    patches: np.ndarray
    box: tuple[float, float, float, float] | None


Scorer = Callable[[int, Grid, str], np.ndarray]
"""Scores of all patches [rows * columns], from the number of an image, its grid, a category."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CocoPatches:
    """Patches of coco_mini's validation images against the names of the things they show.

    Attributes:
      folder: coco_mini.
      name: prefix of its numbers.
      every: steps between two measurements.
      max_num_patches: token budget.
    """

    folder: str
    name: str = "patches"
    every: int = 10_000
    max_num_patches: int = 256

    def __call__(self, model: Any) -> dict[str, float]:
        """`retrieval_ap` and `pointing`, as `measure` gives them, by cosines with the texts.

        Args:
          model: an `Embedder`.
        """
        rows = self.rows()
        paths = [os.path.join(self.folder, "images", row["file"]) for row in rows]
        features = model.image_features(paths, max_num_patches=self.max_num_patches)
        names = sorted({box["category"] for row in rows for box in row["boxes"]})
        texts = model.embed_texts([f"a photo of a {name}" for name in names])
        embeddings, valid = patch_embeddings(model, features), np.asarray(features.valid)

        def scores(i: int, grid: Grid, category: str) -> np.ndarray:
            return embeddings[i][valid[i]] @ texts[names.index(category)]

        return measure(rows, np.asarray(features.grid).tolist(), scores)

    def rows(self) -> list[dict[str, Any]]:
        """Validation images with polygons."""
        rows = [row for _, row in read_rows(os.path.join(self.folder, "annotations.jsonl"))]
        return [row for row in rows if row["split"] == "val" and polygons(row)]


def polygons(row: dict[str, Any]) -> list[tuple[str, list[list[float]]]]:
    """Category and polygons of every thing of an image that has some and is no crowd."""
    boxes = [box for box in row["boxes"] or [] if not box["iscrowd"]]
    return [(x["category"], x["segmentation"]) for x in boxes if x["segmentation"]]


def mask(row: dict[str, Any], things: Sequence[list[list[float]]]) -> np.ndarray:
    """The pixels of some polygons, 0 or 1 [height, width]."""
    canvas = Image.new("L", (row["width"], row["height"]))
    for polygon in (polygon for thing in things for polygon in thing):
        ImageDraw.Draw(canvas).polygon(polygon, fill=1)
    return np.asarray(canvas)


def queries(row: dict[str, Any], grid: Grid) -> Iterator[Query]:
    """The categories of an image."""
    things = polygons(row)
    count = Counter(box["category"] for box in row["boxes"])
    for category in dict.fromkeys(name for name, _ in things):
        share = resize(mask(row, [x for name, x in things if name == category]), grid, box=True)
        box = None
        if count[category] == 1:
            (x, y, width, height) = next(
                box["bbox"] for box in row["boxes"] if box["category"] == category
            )
            sides = np.array([x, y, x + width, y + height])
            box = tuple((sides / (2 * [row["width"], row["height"]])).clip(0, 1).tolist())
        yield Query(category, share.ravel() > 0.5, box)


def measure(
    rows: Sequence[dict[str, Any]], grids: Sequence[Grid], scores: Scorer
) -> dict[str, float]:
    """Scores of patches against queries.

    Returns:
      `retrieval_ap`: average precision of an image's patches, those of the category being right;
      the mean over categories in images that cover a patch. `pointing`: the share of categories
      with one box in an image whose best patch has its centre in that box.
    """
    precisions, hits = [], []
    for i, (row, (height, width)) in enumerate(zip(rows, grids, strict=True)):
        for query in queries(row, (height, width)):
            values = scores(i, (height, width), query.category)
            if query.patches.any():
                precisions.append(average_precision(values, query.patches))
            if query.box is not None:
                best = int(np.argmax(values))
                x, y = (best % width + 0.5) / width, (best // width + 0.5) / height
                left, top, right, bottom = query.box
                hits.append(left <= x <= right and top <= y <= bottom)
    return {"retrieval_ap": float(np.mean(precisions)), "pointing": float(np.mean(hits))}


def average_precision(scores: np.ndarray, right: np.ndarray) -> float:
    """Mean, over the right ones, of the share of right ones among those not below them."""
    order = np.argsort(-scores, kind="stable")
    hits = right[order].cumsum() / np.arange(1, len(order) + 1)
    return float(hits[right[order]].mean())


def towards_the_centre(i: int, grid: tuple[int, int], category: str) -> np.ndarray:
    """Scores of patches that know nothing: the nearer to the centre, the higher."""
    rows, columns = np.indices(grid)
    return -np.hypot((rows + 0.5) / grid[0] - 0.5, (columns + 0.5) / grid[1] - 0.5).ravel()


def write_maps(folder: str, out: str, classes: int) -> None:
    """Class maps of coco_mini's validation images, of the categories that most of them show.

    The smaller thing lies on top; pixels of nothing are 255. `legend.json` has the classes, and
    pairs of an image and a map's name.

    Args:
      folder: coco_mini.
      out: directory of the maps.
      classes: how many categories.
    """
    rows = CocoPatches(folder=folder).rows()
    images = Counter(name for row in rows for name in {name for name, _ in polygons(row)})
    names = [name for name, _ in sorted(images.items(), key=lambda x: (-x[1], x[0]))[:classes]]
    os.makedirs(out, exist_ok=True)
    pairs = []
    for row in rows:
        planes = [(name, mask(row, [thing])) for name, thing in polygons(row) if name in names]
        label = np.full((row["height"], row["width"]), 255, np.uint8)
        for name, plane in sorted(planes, key=lambda x: -int(x[1].sum())):
            label[plane > 0] = names.index(name)
        if (label < 255).any():
            target = os.path.splitext(row["file"])[0] + ".png"
            Image.fromarray(label).save(os.path.join(out, target))
            pairs.append((os.path.join(folder, "images", row["file"]), target))
    with open(os.path.join(out, "legend.json"), "w") as file:
        json.dump({"classes": names, "pairs": pairs}, file)
