"""Heads of dense probes: scores to maps at label resolution, and their losses.

A head gets the scores of a decoder. Grids and labels differ in size from image to image; both are
padded to one shape, and `grid` and `size` are their true sizes. Heads for normals are in `normals`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from siglip2_jax.benchmarks.dense.grids import bilinear, each_image, total_of_images
from siglip2_jax.benchmarks.dense.losses import Scalar, gradient_loss, sig_loss
from siglip2_jax.types import ArrayLike


@runtime_checkable
class Head(Protocol):
    """A kind of map that a decoder can be trained to draw; hashable.

    Attributes:
      void: padding of labels, for which `known` is false.
    """

    void: ClassVar[int]

    @property
    def channels(self) -> int:
        """Channels of the decoder's scores."""
        ...

    def maps(
        self,
        scores: Float[Array, "B H W C"],
        grid: Int[Array, "B 2"],
        size: Int[Array, "B 2"],
        shape: tuple[int, int],
    ) -> Float[Array, "B h w *K"]:
        """Differentiable maps of each image's `size`, padded to `shape`."""
        ...

    def loss(
        self,
        scores: Float[Array, "B H W C"],
        grid: Int[Array, "B 2"],
        size: Int[Array, "B 2"],
        truth: Array,
        step: Int[Array, ""],
    ) -> Scalar:
        """Loss of a batch whose labels are padded to one shape; unlabelled pixels do not count."""
        ...

    def answer(self, maps: Array) -> Array:
        """Prediction that is compared with the truth."""
        ...

    def worst(self, truth: np.ndarray) -> np.ndarray:
        """The worst possible answer, for an image that cannot be read."""
        ...

    def known(self, truth: ArrayLike) -> ArrayLike:
        """Pixels that have a label: bool `[..., h, w]`."""
        ...


@dataclasses.dataclass(frozen=True)
class ClassHead:
    """Classes by cross-entropy at label resolution (DINOv3's linear segmentation head).

    Attributes:
      channels: number of classes.
    """

    channels: int
    void: ClassVar[int] = -1

    def maps(
        self,
        scores: Float[Array, "B H W C"],
        grid: Int[Array, "B 2"],
        size: Int[Array, "B 2"],
        shape: tuple[int, int],
    ) -> Float[Array, "B h w K"]:
        """Scores of each class."""
        return bilinear(scores, grid, size, shape)

    def loss(
        self,
        scores: Float[Array, "B H W C"],
        grid: Int[Array, "B 2"],
        size: Int[Array, "B 2"],
        truth: Int[Array, "B h w"],
        step: Int[Array, ""],
    ) -> Scalar:
        """Mean cross-entropy over labelled pixels; 0 where there are none."""

        def total(scores: Array, grid: Array, size: Array, truth: Array) -> Scalar:
            height, width = truth.shape
            maps = self.maps(scores[None], grid[None], size[None], (height, width))[0]
            maps -= jax.lax.stop_gradient(maps.max(axis=-1, keepdims=True))
            # By comparison: the gradient of a choice by index is a slow scatter.
            one_hot = truth[..., None] == jnp.arange(self.channels)
            losses = jnp.log(jnp.exp(maps).sum(-1)) - jnp.where(one_hot, maps, 0).sum(-1)
            return jnp.sum(losses, where=self.known(truth))

        loss_sum: Any = total_of_images(total, scores, (grid, size, truth))
        return loss_sum / jnp.maximum(self.known(truth).sum(), 1)

    def answer(self, maps: Float[Array, "B h w K"]) -> Int[Array, "B h w"]:
        """The class with the highest score."""
        return maps.argmax(axis=-1)

    def worst(self, truth: Int[np.ndarray, "h w"]) -> Int[np.ndarray, "h w"]:
        """Class -1, which is none."""
        return np.full_like(truth, -1)

    def known(self, truth: Int[ArrayLike, "*B h w"]) -> Bool[ArrayLike, "*B h w"]:
        """Void is -1."""
        return truth >= 0


@dataclasses.dataclass(frozen=True)
class DepthHead:
    """Depth as a mean of uniform bins (DINOv2's linear depth head, facebookresearch/dinov2).

    Scores are resized `finer` times larger, made positive by `relu(score) + 0.1` and normalised;
    the depth is the mean of the bins weighted with them. It is trained by `sig_weight * sig_loss +
    0.5 * gradient_loss`; in the first `warmup_steps`, the first has its mean term only.

    Attributes:
      channels: number of bins.
      low: depth of the first bin, in metres.
      high: depth of the last bin, in metres.
      finer: 4 for scores of patches, 1 for those of a decoder that enlarges them itself.
      sig_weight: 1 as DINOv2, 10 as Probe3D.
      warmup_steps: steps without the variance term.
    """

    channels: int = 256
    low: float = 1e-3
    high: float = 10.0
    finer: int = 4
    sig_weight: float = 1.0
    warmup_steps: int = 100
    void: ClassVar[int] = 0

    def maps(
        self,
        scores: Float[Array, "B H W C"],
        grid: Int[Array, "B 2"],
        size: Int[Array, "B 2"],
        shape: tuple[int, int],
    ) -> Float[Array, "B h w"]:
        """Depth in metres."""
        finer = self.finer

        def image_map(scores: Array, grid: Array, size: Array) -> Array:
            scores, grid, size = scores[None], grid[None], size[None]
            if finer > 1:
                side = finer * scores.shape[1], finer * scores.shape[2]
                scores = bilinear(scores, grid, finer * grid, side)
            depth = self.depth(scores)[..., None]
            return bilinear(depth, finer * grid, size, shape)[0, ..., 0]

        return each_image(image_map, scores, grid, size)

    def depth(self, scores: Float[Array, "*B C"]) -> Float[Array, "*B"]:
        """The mean of the bins."""
        weights = jax.nn.relu(scores) + 0.1
        bins = jnp.linspace(self.low, self.high, self.channels)
        return jnp.sum(weights * bins, axis=-1) / jnp.sum(weights, axis=-1)

    def loss(
        self,
        scores: Float[Array, "B H W C"],
        grid: Int[Array, "B 2"],
        size: Int[Array, "B 2"],
        truth: Float[Array, "B h w"],
        step: Int[Array, ""],
    ) -> Scalar:
        """`sig_weight * sig_loss + 0.5 * gradient_loss`."""
        _, height, width = truth.shape
        maps = self.maps(scores, grid, size, (height, width))
        variance_weight = jnp.where(step < self.warmup_steps, 0.0, 1.0)
        sig = self.sig_weight * sig_loss(maps, truth, variance_weight)
        return sig + 0.5 * gradient_loss(maps, truth)

    def answer(self, maps: Float[Array, "B h w"]) -> Float[Array, "B h w"]:
        """Depth in metres."""
        return maps

    def worst(self, truth: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
        """The first or the last bin, whichever is farther off."""
        nearer = truth - self.low < self.high - truth
        return np.where(nearer, self.high, self.low).astype(np.float32)

    def known(self, truth: Float[ArrayLike, "*B h w"]) -> Bool[ArrayLike, "*B h w"]:
        """Unknown is 0."""
        return truth > 0
