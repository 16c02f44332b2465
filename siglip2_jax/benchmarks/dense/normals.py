"""Heads that draw the normals of surfaces: without and with an uncertainty."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from siglip2_jax.benchmarks.dense.grids import bilinear
from siglip2_jax.benchmarks.dense.losses import Scalar, angular_likelihood
from siglip2_jax.types import ArrayLike


@dataclasses.dataclass(frozen=True)
class NormalsHead:
    """Unit normals, trained by the mean of `1 - cosine`, half the square of the angle."""

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
        return _unit(bilinear(scores[..., :3], grid, size, shape))

    def loss(
        self,
        scores: Float[Array, "B H W C"],
        grid: Int[Array, "B 2"],
        size: Int[Array, "B 2"],
        truth: Float[Array, "B h w 3"],
        step: Int[Array, ""],
    ) -> Scalar:
        """Mean over labelled pixels; 0 where there are none."""
        _, height, width, _ = truth.shape
        maps = self.maps(scores, grid, size, (height, width))
        return _mean(1 - jnp.sum(maps * truth, axis=-1), self.known(truth))

    def answer(self, maps: Float[Array, "B h w 3"]) -> Float[Array, "B h w 3"]:
        """Unit vectors."""
        return maps

    def worst(self, truth: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 3"]:
        """The opposite direction: off by 180 degrees."""
        return -truth

    def known(self, truth: Float[ArrayLike, "*B h w 3"]) -> Bool[ArrayLike, "*B h w"]:
        """Unknown is the zero vector."""
        return (truth != 0).any(axis=-1)


@dataclasses.dataclass(frozen=True)
class UncertainNormalsHead(NormalsHead):
    """Unit normals with a concentration kappa beside each, which the loss weighs angles by.

    As in Probe3D (arXiv 2404.08636), after Bae et al. (arXiv 2109.09881): the loss is
    `losses.angular_likelihood` with `kappa = elu(score) + 1.01`. Probe3D enlarges scores
    bicubically at the end, this head bilinearly.
    """

    channels: int = 4

    def loss(
        self,
        scores: Float[Array, "B H W C"],
        grid: Int[Array, "B 2"],
        size: Int[Array, "B 2"],
        truth: Float[Array, "B h w 3"],
        step: Int[Array, ""],
    ) -> Scalar:
        """Mean over labelled pixels; 0 where there are none."""
        _, height, width, _ = truth.shape
        values = bilinear(scores, grid, size, (height, width))
        cosine = jnp.sum(_unit(values[..., :3]) * truth, axis=-1)
        kappa = jax.nn.elu(values[..., 3]) + 1.01
        return _mean(angular_likelihood(cosine, kappa), self.known(truth))


def _unit(vectors: Float[Array, "*B 3"]) -> Float[Array, "*B 3"]:
    square = jnp.sum(vectors**2, axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(square, 1e-12))


def _mean(losses: Float[Array, "B h w"], known: Bool[ArrayLike, "B h w"]) -> Scalar:
    return jnp.sum(losses, where=known) / jnp.maximum(known.sum(), 1)
