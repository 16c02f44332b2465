"""Sizes of tiny models, and random parameters for them."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jax.sharding import Mesh

from siglip2_jax.checkpoints.checkpoint import param_shapes
from siglip2_jax.demo import TOKENIZER
from siglip2_jax.inference.embedder import Embedder
from siglip2_jax.models.config import ModelConfig, TextConfig, VisionConfig
from siglip2_jax.models.siglip2 import Params, unflatten
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.preprocess.tokenizer import Tokenizer

TINY = ModelConfig(
    vision=VisionConfig(
        width=24, depth=1, mlp_dim=32, num_heads=2, patch_size=4, grid=4, image_size=None
    ),
    text=TextConfig(width=16, depth=1, mlp_dim=32, num_heads=2, vocab_size=1024, embed_dim=24),
)
"""A NaFlex model with patches of 4 pixels, whose vocabulary fits the shipped tokenizer."""

TINY_FIXED = dataclasses.replace(TINY, vision=dataclasses.replace(TINY.vision, image_size=16))
"""The same model for images of 16 pixels a side."""


def random_params(config: ModelConfig, seed: int = 0) -> Params:
    """Parameters in which nothing is zero or one, so that a swapped or dropped one shows."""
    rng = np.random.default_rng(seed)
    leaves = {}
    for path, shape in param_shapes(config).items():
        x = rng.standard_normal(shape, np.float32)
        scale = 0.1
        if path.endswith("kernel"):
            projects_in = any(f"/{name}/" in path for name in ("query", "key", "value"))
            fan_in = shape[-3] if projects_in else shape[-2]
            scale = (shape[-3] * fan_in if "/out/" in path else fan_in) ** -0.5
        leaves[path] = x * np.float32(scale) + np.float32(path.endswith("scale"))
    leaves["t"], leaves["b"] = np.float32(2.3), np.float32(-9.5)
    return jax.tree.map(np.asarray, unflatten(leaves))


def tiny_embedder(
    config: ModelConfig = TINY,
    *,
    seed: int = 0,
    tokenizer: bool = True,
    mesh: Mesh | None = None,
) -> Embedder:
    """An embedder with random parameters and, unless told otherwise, the shipped tokenizer."""
    vision = config.vision
    return Embedder(
        config,
        random_params(config, seed),
        ImagePreprocessor(patch_size=vision.patch_size, image_size=vision.image_size),
        Tokenizer.load(TOKENIZER, length=config.text.length) if tokenizer else None,
        mesh=mesh,
    )
