"""One linear layer on every patch of frozen features, and the enlarging of what it says."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from siglip2_jax.types import Features

Weights = dict[str, Array]


def whitened(train: Features, test: Features) -> tuple[Features, Features]:
    """Features shifted and scaled by the mean and deviation of the training set; padding is 0.

    This stands for the batch normalisation of DINOv3's linear head: on frozen features its
    statistics are known from the start.
    """
    rows = [x[v].astype(np.float64) for x, v in zip(train.tokens, train.valid, strict=True)]
    count = sum(map(len, rows))
    mean = sum(x.sum(0) for x in rows) / count
    std = np.sqrt(sum(((x - mean) ** 2).sum(0) for x in rows) / count)
    pooled = train.pooled.astype(np.float64)
    by_patch, by_image = (mean, std), (pooled.mean(0), pooled.std(0))

    def scaled(features: Features) -> Features:
        tokens = _scaled(features.tokens, *by_patch)
        tokens = np.where(features.valid[..., None], tokens, 0)
        return dataclasses.replace(
            features, tokens=tokens, pooled=_scaled(features.pooled, *by_image)
        )

    return scaled(train), scaled(test)


def _scaled(x: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    # What is constant in training (the pooled vector of a single photo) is not blown up.
    std = np.where(std > 1e-5, std, 1)
    return (x.astype(np.float32) - mean.astype(np.float32)) / std.astype(np.float32)


def patch_scores(
    weights: Weights, features: Features, side: tuple[int, int]
) -> Float[Array, "B H W C"]:
    """The linear layer on each patch's token beside the image's pooled vector, on padded grids.

    The pooled vector takes the place of the class token (SigLIP 2, arXiv 2502.14786, section
    3.3.1). As the layer is linear, the two are multiplied apart and never concatenated.

    Args:
      weights: `tokens` [D, C], `pooled` [D, C] and `bias` [C].
      features: tokens in row-major order, padding at the end.
      side: rows and columns of the largest grid; smaller ones repeat their last row and column.
    """
    with jax.default_matmul_precision("highest"):
        per_image = features.pooled @ weights["pooled"] + weights["bias"]
        scores = features.tokens @ weights["tokens"] + per_image[:, None]
    height, width = features.grid[:, 0, None], features.grid[:, 1, None]
    rows = jnp.minimum(jnp.arange(side[0]), height - 1)
    columns = jnp.minimum(jnp.arange(side[1]), width - 1)
    index = (rows * width)[:, :, None] + columns[:, None, :]
    found = jnp.take_along_axis(scores, index.reshape(len(index), -1, 1), axis=1)
    return found.reshape(len(index), *side, -1)


def initial_weights(width: int, channels: int, seed: int) -> Weights:
    """Small random weights and no bias."""
    draw = partial(jax.random.normal, shape=(width, channels))
    tokens, pooled = (0.01 * draw(key) for key in jax.random.split(jax.random.key(seed)))
    return {"tokens": tokens, "pooled": pooled, "bias": jnp.zeros(channels)}


def dropped(features: Features, rate: float, key: Array) -> Features:
    """Leaves out some features of each image, the same ones in all its patches."""
    if rate == 0:
        return features
    shape = features.pooled.shape
    keep = jax.random.bernoulli(key, 1 - rate, (2, *shape)) / (1 - rate)
    return dataclasses.replace(
        features, tokens=features.tokens * keep[0][:, None], pooled=features.pooled * keep[1]
    )


def bilinear(
    values: Float[Array, "B H W C"],
    old: Int[Array, "B 2"],
    new: Int[Array, "B 2"],
    shape: tuple[int, int],
) -> Float[Array, "B h w C"]:
    """Bilinear resize at half-pixel centres without antialiasing, as `torch.interpolate` does.

    Args:
      values: finite; real within each image's `old` rows and columns, from the top left.
      old: rows and columns of each image.
      new: rows and columns to resize to, at most `shape`.
      shape: rows and columns of the result; what lies outside `new` is meaningless and finite.
    """
    rows, columns = (
        _weights(old[:, i], new[:, i], values.shape[1 + i], shape[i]) for i in range(2)
    )
    return jnp.einsum("bhi,bijc,bwj->bhwc", rows, values, columns, precision="highest")


def _weights(
    old: Int[Array, " B"], new: Int[Array, " B"], old_side: int, new_side: int
) -> Float[Array, "B new old"]:
    """How much each old position counts at each new one; padding does not."""
    centre = (jnp.arange(new_side) + 0.5) * (old / new)[:, None] - 0.5
    centre = jnp.clip(centre, 0, old[:, None] - 1)
    return jnp.maximum(0, 1 - jnp.abs(centre[..., None] - jnp.arange(old_side)))
