"""Dense probes: decoders trained on frozen patch tokens, measured at every pixel.

SigLIP 2's table 2 (arXiv 2502.14786, section 3.3.1) follows TIPS (arXiv 2410.16512, section 4.1):
a frozen encoder, the pooled vector beside every patch token, linear heads for segmentation and
NYUv2 depth, DPT decoders for NAVI and for normals. Tokens are computed once, so there are no random
crops or flips; recipes are scaled down from the public ones, and `recipe` brings them back:
segmentation 40,000 steps of 16 (DINOv3), NYUv2 depth 38,400 at 1e-4 (DINOv2), normals and NAVI 10
epochs at 5e-4 (Probe3D).

Training images that cannot be read are left out, and such test images get the worst possible
answer; the model lists both (`Measured.failed`), or warns of them. Labels must be readable.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from siglip2_jax.benchmarks.dense.data import (
    DenseData,
    read_class_map,
    read_depth,
    read_normals,
    relative_depth,
)
from siglip2_jax.benchmarks.dense.dpt import DPT
from siglip2_jax.benchmarks.dense.features import ImageFeatures, ImageModel, read_features
from siglip2_jax.benchmarks.dense.figures import (
    class_colours,
    depth_colours,
    normal_colours,
    write_figure,
)
from siglip2_jax.benchmarks.dense.heads import ClassHead, DepthHead, Head
from siglip2_jax.benchmarks.dense.layer import Decoder, Linear, whitened
from siglip2_jax.benchmarks.dense.metrics import (
    angular_rmse,
    confusion,
    depth_rmse,
    mean_iou,
    mean_over_images,
)
from siglip2_jax.benchmarks.dense.normals import NormalsHead, UncertainNormalsHead
from siglip2_jax.benchmarks.dense.train import Recipe, draw_maps, train_head

PROBE3D = Recipe(steps=2000, batch_size=8, learning_rate=5e-4, weight_decay=0.01, warmup=0.15)
"""Probe3D's (arXiv 2404.08636) for decoders of depth and normals."""


class Drawn(NamedTuple):
    """A test image's map.

    Attributes:
      image: path of the image.
      predicted: at the label's resolution.
      truth: the label.
    """

    image: str
    predicted: np.ndarray
    truth: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseProbe:
    """Base of the dense probes.

    All features and labels are held in memory: `images * max_num_patches * width * 4` bytes, for a
    DPT decoder four times as much.

    Attributes:
      data: images and labels.
      recipe: how the decoder is trained.
      name: prefix of its numbers.
      decoder: what is trained on the features.
      every: steps between two measurements.
      max_num_patches: token budget at native resolution.
      figures: folder for PNG files of image, truth and prediction side by side; None draws none.
      num_figures: how many, from the first test image.
    """

    data: DenseData
    recipe: Recipe
    name: str
    decoder: Decoder = Linear()
    every: int = 10_000
    max_num_patches: int = 256
    figures: str | None = None
    num_figures: int = 8

    def _trained(
        self,
        model: ImageModel,
        head: Head,
        read_label: Callable[[str], np.ndarray],
        colours: Callable[[np.ndarray], np.ndarray],
    ) -> Iterator[Drawn]:
        """Trains the decoder, then draws every test image."""
        train, test = self._features(model)
        labels = [read_label(self.data.train[i][1]) for i in train.read]
        weights = train_head(
            self.decoder, head, train.features, labels, self.recipe, f"probe {self.name}"
        )
        labels = [read_label(label) for _, label in self.data.test]
        maps = draw_maps(self.decoder, head, weights, test, labels, self.recipe.batch_size)
        for i, (predicted, truth) in enumerate(zip(maps, labels, strict=True)):
            test_map = Drawn(self.data.test[i][0], predicted, truth)
            in_figures = i < self.num_figures and i in test.read
            if self.figures and in_figures and jax.process_index() == 0:
                path = epath.Path(self.figures) / f"{i:03d}_{Path(test_map.image).stem}.png"
                write_figure(path, test_map.image, colours(truth), colours(predicted))
            yield test_map

    def _features(self, model: ImageModel) -> tuple[ImageFeatures, ImageFeatures]:
        """Reads the features of the training and the test images, whitened alike."""
        train, test = (
            read_features(
                model,
                [image for image, _ in pairs],
                max_num_patches=self.max_num_patches,
                blocks=self.decoder.blocks,
                label=f"probe {self.name}, {split} images",
            )
            for split, pairs in (("training", self.data.train), ("test", self.data.test))
        )
        if not len(train.read):
            raise ValueError(
                f"probe {self.name}: none of {len(self.data.train)} training images, such as "
                f"{self.data.train[0][0]}, can be read; check the paths in the index"
            )
        blocks = zip(train.features, test.features, strict=True)
        pairs = [whitened(*block) for block in blocks]
        train_blocks, test_blocks = zip(*pairs, strict=True)
        return train._replace(features=train_blocks), test._replace(features=test_blocks)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentationProbe(DenseProbe):
    """Mean intersection over union of a classifier of patches.

    Cross-entropy is taken at label resolution, on bilinearly enlarged scores. Of a test image that
    cannot be read all labelled pixels count as errors, for their own classes only.

    Attributes:
      classes: their names; labels hold 0 up to `len(classes) - 1`.
      void: the label of pixels that count neither in training nor in the result.
    """

    classes: tuple[str, ...]
    void: int = 255
    name: str = "segmentation"
    recipe: Recipe = Recipe(steps=2000, dropout=0.1)

    def __call__(self, model: ImageModel) -> dict[str, float]:
        """`miou` and `pixel_accuracy`, from 0 to 1, over all test pixels together.

        Raises:
          ValueError: no training image or a label cannot be used, or no pixel has a label.
        """
        count = len(self.classes)
        read_label = partial(read_class_map, num_classes=count, void=self.void)
        total = np.zeros((count, count + 1), np.int64)
        for test_map in self._trained(model, ClassHead(count), read_label, class_colours):
            total += confusion(test_map.predicted, test_map.truth, count)
        return {"miou": mean_iou(total), "pixel_accuracy": float(np.trace(total) / total.sum())}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DepthProbe(DenseProbe):
    """Error of depth from bins of depth: DINOv2's linear head, or a DPT decoder.

    Every pixel of a test image that cannot be read counts as the end of the bins' range that is
    farther from its true depth.

    Attributes:
      unit: metres that a level of a label image stands for.
      head: bins and their range; depths outside it count as unknown.
      relative: whether depth is that within the image, from 0.01 (its nearest pixel) to 1.
      crop: rows and columns (top, bottom, left, right) of labels outside which test pixels do not
        count; NYUv2's usual one is (45, 471, 41, 601).
    """

    unit: float = 1e-3
    head: DepthHead = DepthHead()
    relative: bool = False
    crop: tuple[int, int, int, int] | None = None
    name: str = "depth"
    recipe: Recipe = Recipe(steps=2000, weight_decay=0.01, warmup=1 / 3)

    def __call__(self, model: ImageModel) -> dict[str, float]:
        """`rmse` in metres, or without a unit: of each test image, then the mean over images.

        Raises:
          ValueError: no training image or a label cannot be used, or no pixel has a label.
        """
        colours = partial(depth_colours, far=self.head.high)
        errors = []
        for test_map in self._trained(model, self.head, self._read, colours):
            truth = test_map.truth
            if self.crop is not None:
                top, bottom, left, right = self.crop
                inside = np.zeros(truth.shape, bool)
                inside[top:bottom, left:right] = True
                truth = np.where(inside, truth, 0)
            errors.append(depth_rmse(test_map.predicted, truth))
        return {"rmse": mean_over_images(errors)}

    def _read(self, path: str) -> np.ndarray:
        depth = read_depth(path, self.unit)
        if self.relative:
            return relative_depth(depth)
        return np.where((depth > self.head.low) & (depth < self.head.high), depth, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormalsProbe(DenseProbe):
    """Error of surface normals.

    Labels are as `data.read_normals` describes. Every pixel of an unreadable test image counts as
    off by 180 degrees.

    Attributes:
      head: makes normals of scores, and their loss.
    """

    head: NormalsHead = UncertainNormalsHead()
    decoder: Decoder = DPT()
    name: str = "normals"
    recipe: Recipe = PROBE3D

    def __call__(self, model: ImageModel) -> dict[str, float]:
        """`angular_rmse` in degrees: of each test image, then the mean over images.

        Raises:
          ValueError: no training image or a label cannot be used, or no pixel has a label.
        """
        maps = self._trained(model, self.head, read_normals, normal_colours)
        errors = [angular_rmse(test_map.predicted, test_map.truth) for test_map in maps]
        return {"angular_rmse": mean_over_images(errors)}
