"""Sizes of a small model with odd numbers everywhere, and patches of any grid."""

import dataclasses

import numpy as np

from siglip2_jax.models.config import ModelConfig, TextConfig, VisionConfig
from siglip2_jax.types import Patches

TINY = ModelConfig(
    vision=VisionConfig(
        width=48, depth=2, mlp_dim=112, num_heads=3, patch_size=4, grid=8, image_size=None
    ),
    text=TextConfig(width=40, depth=3, mlp_dim=96, num_heads=5, vocab_size=97, embed_dim=48),
)


def with_vision(config: ModelConfig, **changes) -> ModelConfig:
    """`config` with other sizes of the vision tower."""
    vision = dataclasses.replace(config.vision, **changes)
    text = dataclasses.replace(config.text, embed_dim=vision.width)
    return dataclasses.replace(config, vision=vision, text=text)


def patches(
    grids: list[tuple[int, int]], budget: int, patch_size: int = 4, *, seed: int = 0, fill=0.0
) -> Patches:
    """Random images of the given grids (rows, columns), padded with `fill` to `budget`."""
    values = patch_size**2 * 3
    pixels = np.full((len(grids), budget, values), fill, np.float32)
    yx = np.zeros((len(grids), budget, 2), np.int32)
    valid = np.zeros((len(grids), budget), bool)
    for i, (rows, columns) in enumerate(grids):
        n = rows * columns
        rng = np.random.default_rng((seed, i, rows, columns))
        pixels[i, :n] = rng.uniform(-1, 1, (n, values))
        yx[i, :n] = np.indices((rows, columns)).reshape(2, n).T
        valid[i, :n] = True
    return Patches(pixels, yx, valid)
