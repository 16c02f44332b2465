"""Dense probes: what a linear layer on frozen patch tokens knows of every pixel.

SigLIP 2's table 2 (arXiv 2502.14786, section 3.3.1) follows TIPS (arXiv 2410.16512, section 4.1):
a frozen encoder, the pooled vector beside every patch token, linear heads for segmentation and
NYUv2 depth, and DPT heads, which are not here, for the rest. Tokens are computed once, so there
are no random crops or flips; recipes are scaled down from the public ones, and `recipe` brings
them back: segmentation 40,000 steps of 16 (DINOv3), depth 38,400 at 1e-4 (DINOv2), normals 10
epochs at 5e-4 (Probe3D).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from siglip2_jax.evals.base import Model
from siglip2_jax.evals.dense.data import DenseData, read_class_map, read_depth, read_normals
from siglip2_jax.evals.dense.heads import ClassHead, DepthHead, Head, NormalsHead
from siglip2_jax.evals.dense.layer import whitened
from siglip2_jax.evals.dense.metrics import (
    angular_rmse,
    confusion,
    depth_rmse,
    mean_iou,
    mean_over_images,
)
from siglip2_jax.evals.dense.pictures import (
    class_colours,
    depth_colours,
    normal_colours,
    write_picture,
)
from siglip2_jax.evals.dense.train import Recipe, draw_maps, train_head
from siglip2_jax.inference import DEFAULT_BATCH_SIZE


class Drawn(NamedTuple):
    """A test image's map.

    Attributes:
      image: path of the photo.
      predicted: at the label's resolution.
      truth: the label.
    """

    image: str
    predicted: np.ndarray
    truth: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseProbe:
    """What the probes share.

    All features and labels are held in memory: `images * max_num_patches * width * 4` bytes.

    Attributes:
      data: photos and labels; every photo must be readable.
      recipe: how the layer is trained.
      name: prefix of its numbers.
      every: steps between two measurements.
      max_num_patches: token budget at native resolution.
      pictures: folder for PNG files of photo, truth and prediction side by side; None draws none.
      num_pictures: how many, from the first test image.
    """

    data: DenseData
    recipe: Recipe
    name: str
    every: int = 10_000
    max_num_patches: int = 256
    pictures: str | None = None
    num_pictures: int = 8

    def _trained(
        self,
        model: Model,
        head: Head,
        read: Callable[[str], np.ndarray],
        colours: Callable[[np.ndarray], np.ndarray],
    ) -> Iterator[Drawn]:
        """Trains the layer, then draws every test image."""
        train, test = (
            model.image_features(
                [image for image, _ in pairs],
                max_num_patches=self.max_num_patches,
                batch_size=DEFAULT_BATCH_SIZE,
            )
            for pairs in (self.data.train, self.data.test)
        )
        train, test = whitened(train, test)
        labels = [read(label) for _, label in self.data.train]
        weights = train_head(head, train, labels, self.recipe, f"probe {self.name}")
        labels = [read(label) for _, label in self.data.test]
        sizes = np.array([label.shape[:2] for label in labels], np.int32)
        drawn = draw_maps(head, weights, test, sizes, self.recipe.batch_size)
        for i, (predicted, truth) in enumerate(zip(drawn, labels, strict=True)):
            found = Drawn(self.data.test[i][0], predicted, truth)
            if self.pictures and i < self.num_pictures and jax.process_index() == 0:
                path = Path(self.pictures) / f"{i:03d}_{Path(found.image).stem}.png"
                write_picture(path, found.image, colours(truth), colours(predicted))
            yield found


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentationProbe(DenseProbe):
    """Mean intersection over union of a linear classifier of patches.

    Cross-entropy is taken at label resolution, on bilinearly enlarged scores.

    Attributes:
      classes: their names; labels hold 0 up to `len(classes) - 1`.
      void: the label of pixels that count neither in training nor in the result.
    """

    classes: tuple[str, ...]
    void: int = 255
    name: str = "segmentation"
    recipe: Recipe = Recipe(steps=2000, dropout=0.1)

    def __call__(self, model: Model) -> dict[str, float]:
        """`miou` and `pixel_accuracy`, from 0 to 1, over all test pixels together.

        Raises:
          ValueError: a photo or label cannot be used, or no pixel has a label.
        """
        count = len(self.classes)
        read = partial(read_class_map, num_classes=count, void=self.void)
        total = np.zeros((count, count), np.int64)
        for found in self._trained(model, ClassHead(count), read, class_colours):
            total += confusion(found.predicted, found.truth, count)
        return {"miou": mean_iou(total), "pixel_accuracy": float(np.trace(total) / total.sum())}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DepthProbe(DenseProbe):
    """Error of depth from a linear layer over bins of depth (DINOv2's linear head).

    Attributes:
      unit: metres that a level of a label picture stands for.
      head: bins and their range; depths outside it count as unknown.
      crop: rows and columns (top, bottom, left, right) of labels outside which test pixels do not
        count; NYUv2's usual one is (45, 471, 41, 601).
    """

    unit: float = 1e-3
    head: DepthHead = DepthHead()
    crop: tuple[int, int, int, int] | None = None
    name: str = "depth"
    recipe: Recipe = Recipe(steps=2000, weight_decay=0.01, warmup=1 / 3)

    def __call__(self, model: Model) -> dict[str, float]:
        """`rmse` in metres: of each test image, then the mean over images.

        Raises:
          ValueError: a photo or label cannot be used, or no pixel has a label.
        """
        colours = partial(depth_colours, far=self.head.high)
        errors = []
        for found in self._trained(model, self.head, self._read, colours):
            truth = found.truth
            if self.crop is not None:
                top, bottom, left, right = self.crop
                inside = np.zeros(truth.shape, bool)
                inside[top:bottom, left:right] = True
                truth = np.where(inside, truth, 0)
            errors.append(depth_rmse(found.predicted, truth))
        return {"rmse": mean_over_images(errors)}

    def _read(self, path: str) -> np.ndarray:
        depth = read_depth(path, self.unit)
        return np.where((depth > self.head.low) & (depth < self.head.high), depth, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormalsProbe(DenseProbe):
    """Error of surface normals from a linear layer.

    Labels are as `data.read_normals` says.
    """

    name: str = "normals"
    recipe: Recipe = Recipe(
        steps=2000, batch_size=8, learning_rate=5e-4, weight_decay=0.01, warmup=0.15
    )

    def __call__(self, model: Model) -> dict[str, float]:
        """`angular_rmse` in degrees: of each test image, then the mean over images.

        Raises:
          ValueError: a photo or label cannot be used, or no pixel has a label.
        """
        drawn = self._trained(model, NormalsHead(), read_normals, normal_colours)
        errors = [angular_rmse(found.predicted, found.truth) for found in drawn]
        return {"angular_rmse": mean_over_images(errors)}
