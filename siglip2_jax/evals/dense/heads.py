"""What linear probes make of patch scores: maps at label resolution, and their losses.

A head gets the outputs of one linear layer per patch. Patch grids and labels differ in size from
image to image; both are padded to one shape, and `grid` and `size` say what is real.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from siglip2_jax.evals.dense.layer import bilinear
from siglip2_jax.evals.dense.losses import Scalar, gradient_loss, sig_loss
from siglip2_jax.types import ArrayLike


@runtime_checkable
class Head(Protocol):
    """A kind of map that a linear layer can be trained to draw; hashable.

    Attributes:
      channels: outputs of the linear layer.
      void: what labels are padded with; `known` is false of it.
    """

    channels: int
    void: ClassVar[int]

    def maps(
        self,
        scores: Float[Array, "B H W C"],
        grid: Int[Array, "B 2"],
        size: Int[Array, "B 2"],
        shape: tuple[int, int],
    ) -> Float[Array, "B h w *K"]:
        """Differentiable maps of each image's `size`, padded to `shape`."""
        ...

    def loss(self, maps: Array, truth: Array, step: Int[Array, ""]) -> Scalar:
        """Of a batch; pixels without a label do not count."""
        ...

    def answer(self, maps: Array) -> Array:
        """What is compared with the truth."""
        ...

    def known(self, truth: ArrayLike) -> ArrayLike:
        """Which pixels have a label: bool `[..., h, w]`."""
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
        self, maps: Float[Array, "B h w K"], truth: Int[Array, "B h w"], step: Int[Array, ""]
    ) -> Scalar:
        """Mean cross-entropy over labelled pixels; 0 where there are none."""
        known = self.known(truth)
        labels = jnp.where(known, truth, 0)
        losses = optax.softmax_cross_entropy_with_integer_labels(maps, labels)
        return jnp.sum(losses, where=known) / jnp.maximum(known.sum(), 1)

    def answer(self, maps: Float[Array, "B h w K"]) -> Int[Array, "B h w"]:
        """The class with the highest score."""
        return maps.argmax(axis=-1)

    def known(self, truth: Int[ArrayLike, "*B h w"]) -> Bool[ArrayLike, "*B h w"]:
        """Void is -1."""
        return truth >= 0


@dataclasses.dataclass(frozen=True)
class DepthHead:
    """Depth as a mean of uniform bins (DINOv2's linear depth head, facebookresearch/dinov2).

    Scores are resized four times larger, made positive by `relu(score) + 0.1` and normalised; the
    depth is the mean of the bins weighted with them. It is trained by `sig_loss + 0.5 *
    gradient_loss`; in the first `warmup_steps`, the first has its mean term only.

    Attributes:
      channels: number of bins.
      low: depth of the first bin, in metres.
      high: depth of the last bin, in metres.
      warmup_steps: steps without the variance term.
    """

    channels: int = 256
    low: float = 1e-3
    high: float = 10.0
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
        side = 4 * scores.shape[1], 4 * scores.shape[2]
        depth = self.depth(bilinear(scores, grid, 4 * grid, side))
        return bilinear(depth[..., None], 4 * grid, size, shape)[..., 0]

    def depth(self, scores: Float[Array, "*B C"]) -> Float[Array, "*B"]:
        """The mean of the bins."""
        weights = jax.nn.relu(scores) + 0.1
        bins = jnp.linspace(self.low, self.high, self.channels)
        return jnp.sum(weights * bins, axis=-1) / jnp.sum(weights, axis=-1)

    def loss(
        self, maps: Float[Array, "B h w"], truth: Float[Array, "B h w"], step: Int[Array, ""]
    ) -> Scalar:
        """`sig_loss + 0.5 * gradient_loss`."""
        variance_weight = jnp.where(step < self.warmup_steps, 0.0, 1.0)
        return sig_loss(maps, truth, variance_weight) + 0.5 * gradient_loss(maps, truth)

    def answer(self, maps: Float[Array, "B h w"]) -> Float[Array, "B h w"]:
        """Depth in metres."""
        return maps

    def known(self, truth: Float[ArrayLike, "*B h w"]) -> Bool[ArrayLike, "*B h w"]:
        """Unknown is 0."""
        return truth > 0


@dataclasses.dataclass(frozen=True)
class NormalsHead:
    """Unit normals of surfaces, trained by the mean of `1 - cosine`, half the square of the angle.

    Probe3D's head is a DPT with an uncertainty beside each normal; this one is linear and plain.
    """

    channels: int = 3
    void: ClassVar[int] = 0

    def maps(
        self,
        scores: Float[Array, "B H W C"],
        grid: Int[Array, "B 2"],
        size: Int[Array, "B 2"],
        shape: tuple[int, int],
    ) -> Float[Array, "B h w 3"]:
        """Unit vectors."""
        vectors = bilinear(scores, grid, size, shape)
        square = jnp.sum(vectors**2, axis=-1, keepdims=True)
        return vectors * jax.lax.rsqrt(jnp.maximum(square, 1e-12))

    def loss(
        self, maps: Float[Array, "B h w 3"], truth: Float[Array, "B h w 3"], step: Int[Array, ""]
    ) -> Scalar:
        """Mean over labelled pixels; 0 where there are none."""
        known = self.known(truth)
        losses = 1 - jnp.sum(maps * truth, axis=-1)
        return jnp.sum(losses, where=known) / jnp.maximum(known.sum(), 1)

    def answer(self, maps: Float[Array, "B h w 3"]) -> Float[Array, "B h w 3"]:
        """Unit vectors."""
        return maps

    def known(self, truth: Float[ArrayLike, "*B h w 3"]) -> Bool[ArrayLike, "*B h w"]:
        """Unknown is the zero vector."""
        return (truth != 0).any(axis=-1)
