"""Probes of `small_evidence.py`: what frozen patch tokens say of classes and of depth."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from evidence_patches import resize

from siglip2_jax.benchmarks.dense.data import read_class_map, read_depth, read_index, read_legend
from siglip2_jax.benchmarks.dense.metrics import (
    confusion,
    depth_rmse,
    mean_iou,
    mean_over_images,
)
from siglip2_jax.preprocess.patches import pad_and_stack
from siglip2_jax.types import Features

FOLDS = 4
RIDGE = 1e-2


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrozenProbes:
    """Ridge regression from patch tokens to classes of camvid_60 and depth of depth_7scenes_32.

    Only images of the training splits are used: in order of their names they are cut into four
    parts, and each part is measured by a regression on the other three.

    Attributes:
      data: directory with both sets.
      name: prefix of its numbers.
      every: steps between two measurements.
      max_num_patches: token budget.
    """

    data: str
    name: str = "probe"
    every: int = 10_000
    max_num_patches: int = 256

    def __call__(self, model: Any) -> dict[str, float]:
        """`camvid_miou`, from 0 to 1, and `depth_rmse` in metres, of each image and then the mean.

        Args:
          model: has `image_features`.
        """
        folder = os.path.join(self.data, "camvid_60")
        names, void = read_legend(os.path.join(folder, "classes.json"))
        pairs = sorted(read_index(os.path.join(folder, "index.jsonl")).train)
        labels = [read_class_map(label, len(names), void) for _, label in pairs]
        onehot = [(label[..., None] == np.arange(len(names))) for label in labels]
        total = np.zeros((len(names), len(names) + 1), np.int64)
        for i, scores in self._predicted(model, [image for image, _ in pairs], onehot):
            total += confusion(scores.argmax(-1).astype(np.int32), labels[i], len(names))

        index = os.path.join(self.data, "depth_7scenes_32", "index.jsonl")
        pairs = sorted(read_index(index, label="depth").train)
        depths = [read_depth(label) for _, label in pairs]
        # Pixels without a depth get the image's median; they are not measured.
        filled = [np.where(x > 0, x, np.median(x[x > 0]))[..., None] for x in depths]
        drawn = self._predicted(model, [image for image, _ in pairs], filled)
        errors = [depth_rmse(values[..., 0], depths[i]) for i, values in drawn]
        return {"camvid_miou": mean_iou(total), "depth_rmse": mean_over_images(errors)}

    def _predicted(
        self, model: Any, images: Sequence[str], truth: Sequence[np.ndarray]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """The number of each image, and planes like its truth [H, W, C] as the others predict."""
        features = model.image_features(images, max_num_patches=self.max_num_patches)
        valid, grids = np.asarray(features.valid), np.asarray(features.grid).tolist()
        tokens = [x[v] for x, v in zip(np.asarray(features.tokens), valid, strict=True)]
        targets = [
            np.stack([resize(plane, grid, box=True).ravel() for plane in np.moveaxis(x, -1, 0)], -1)
            for x, grid in zip(truth, grids, strict=True)
        ]
        for part in np.array_split(np.arange(len(images)), FOLDS):
            rest = [i for i in range(len(images)) if i not in part]
            inputs = np.concatenate([tokens[i] for i in rest])
            mean, scale = inputs.mean(0), inputs.std(0) + 1e-6
            weights = _ridge((inputs - mean) / scale, np.concatenate([targets[i] for i in rest]))
            for i in part:
                values = _with_one((tokens[i] - mean) / scale) @ weights
                planes = values.reshape(*grids[i], -1)
                size = truth[i].shape[:2]
                yield i, np.stack([resize(x, size) for x in np.moveaxis(planes, -1, 0)], -1)


def _with_one(rows: np.ndarray) -> np.ndarray:
    return np.column_stack([rows, np.ones(len(rows))]).astype(np.float64)


def _ridge(inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    rows = _with_one(inputs)
    penalty = RIDGE * len(rows) * np.eye(rows.shape[1])
    penalty[-1, -1] = 0
    return np.linalg.solve(rows.T @ rows + penalty, rows.T @ targets)


class Colours:
    """A floor for probes: the colours of a patch, their spread, edges by direction, and its place.

    Attributes:
      preprocess: that of the model.
    """

    def __init__(self, preprocess: Any):
        self.preprocess = preprocess

    def image_features(self, images: list[str], max_num_patches: int) -> Any:
        """Features whose tokens are these numbers."""
        prepare = self.preprocess
        items = [prepare.to_patches(prepare.open(image), max_num_patches) for image in images]
        stacked = pad_and_stack(items, prepare.num_tokens(max_num_patches))
        grids = np.array([grid for _, grid in items])
        side = prepare.patch_size
        pixels = np.asarray(stacked.pixels).reshape(*stacked.valid.shape, side, side, 3)
        grey = pixels.mean(-1)
        down, right = np.diff(grey, axis=-2)[..., :-1], np.diff(grey, axis=-1)[..., :-1, :]
        angle = np.floor(np.arctan2(down, right) / (2 * np.pi) * 8 + 4).clip(0, 7)
        strength = np.hypot(down, right)
        edges = [np.where(angle == i, strength, 0).mean((-1, -2)) for i in range(8)]
        place = np.asarray(stacked.yx) / np.maximum(grids[:, None], 1)
        columns = [pixels.mean((-2, -3)), pixels.std((-2, -3)), np.stack(edges, -1)]
        tokens = np.concatenate([*columns, place, place**2], axis=-1)
        return Features(
            tokens=tokens, pooled=tokens[:, 0], image=tokens[:, 0], valid=stacked.valid, grid=grids
        )
