"""Trainable layers on frozen features: the interface, and one linear layer on every patch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from siglip2_jax.benchmarks.dense.grids import on_grid
from siglip2_jax.types import Features

Weights = dict[str, Array]


@runtime_checkable
class Decoder(Protocol):
    """Layer from features of images to scores on a grid; hashable.

    Attributes:
      blocks: how many evenly spaced blocks of the tower it reads; 0 means the tower's own tokens.
    """

    blocks: ClassVar[int]

    def initial(self, width: int, channels: int, seed: int) -> Weights:
        """Random weights.

        Args:
          width: D, of tokens and pooled vectors.
          channels: C, of the scores.
          seed: of the draw.
        """
        ...

    def scores(
        self, weights: Weights, features: Sequence[Features], side: tuple[int, int]
    ) -> tuple[Float[Array, "B H W C"], Int[Array, "B 2"]]:
        """Scores on padded grids, and the rows and columns of each that are real.

        Args:
          weights: as `initial` gives them.
          features: of each block that is read, tokens in row-major order, padding at the end.
          side: rows and columns of the largest grid of patches.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Linear:
    """One linear layer on each patch's token beside the image's pooled vector.

    The pooled vector takes the place of the class token (SigLIP 2, arXiv 2502.14786, section
    3.3.1). As the layer is linear, the two are multiplied apart and never concatenated.
    """

    blocks: ClassVar[int] = 0

    def initial(self, width: int, channels: int, seed: int) -> Weights:
        """Small random `tokens` [D, C] and `pooled` [D, C], and no `bias` [C]."""
        draw = partial(jax.random.normal, shape=(width, channels))
        tokens, pooled = (0.01 * draw(key) for key in jax.random.split(jax.random.key(seed)))
        return {"tokens": tokens, "pooled": pooled, "bias": jnp.zeros(channels)}

    def scores(
        self, weights: Weights, features: Sequence[Features], side: tuple[int, int]
    ) -> tuple[Float[Array, "B H W C"], Int[Array, "B 2"]]:
        """The layer's outputs on grids of patches."""
        (image,) = features
        grid = jnp.asarray(image.grid)
        with jax.default_matmul_precision("highest"):
            per_image = jnp.asarray(image.pooled) @ weights["pooled"] + weights["bias"]
            scores = jnp.asarray(image.tokens) @ weights["tokens"] + per_image[:, None]
        return on_grid(scores, grid, side), grid


def whitened(train: Features, test: Features) -> tuple[Features, Features]:
    """Features shifted and scaled by the mean and deviation of the training set; padding is 0.

    This stands for the batch normalisation of DINOv3's linear head: on frozen features its
    statistics are known from the start.
    """
    tokens, valid = np.asarray(train.tokens), np.asarray(train.valid)
    count = valid.sum()

    def mean_of(power: int, shift: np.ndarray) -> Any:
        rows = (x[v] for x, v in zip(tokens, valid, strict=True))
        return sum(((x.astype(np.float64) - shift) ** power).sum(0) for x in rows) / count

    mean = mean_of(1, np.zeros(tokens.shape[-1]))
    pooled = np.asarray(train.pooled, np.float64)
    by_patch, by_image = (mean, np.sqrt(mean_of(2, mean))), (pooled.mean(0), pooled.std(0))

    def scaled(features: Features) -> Features:
        tokens = _scaled(np.asarray(features.tokens), *by_patch)
        tokens = np.where(np.asarray(features.valid)[..., None], tokens, 0)
        return dataclasses.replace(
            features, tokens=tokens, pooled=_scaled(np.asarray(features.pooled), *by_image)
        )

    return scaled(train), scaled(test)


def _scaled(x: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    # What is constant in training (the pooled vector of a single image) is not blown up.
    std = np.where(std > 1e-5, std, 1)
    return (x.astype(np.float32) - mean.astype(np.float32)) / std.astype(np.float32)


def dropped(features: Features, rate: float, key: Array) -> Features:
    """Leaves out some features of each image, the same ones in all its patches."""
    if rate == 0:
        return features
    shape = features.pooled.shape
    keep = jax.random.bernoulli(key, 1 - rate, (2, *shape)) / (1 - rate)
    tokens = jnp.asarray(features.tokens) * keep[0][:, None]
    return dataclasses.replace(features, tokens=tokens, pooled=features.pooled * keep[1])
