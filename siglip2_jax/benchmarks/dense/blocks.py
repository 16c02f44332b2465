"""Outputs of evenly spaced blocks of the vision tower, for decoders that read several blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx

from siglip2_jax.benchmarks.dense.rows import run_rows
from siglip2_jax.evals.base import OpenModel
from siglip2_jax.inference.embedder import DEFAULT_BATCH_SIZE
from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import VisionConfig
from siglip2_jax.models.kernels.int8 import multiply_out
from siglip2_jax.models.posemb import grid_size
from siglip2_jax.models.siglip2 import Params, normalize
from siglip2_jax.models.vision import VisionTower
from siglip2_jax.sharding import gather, replicate
from siglip2_jax.types import Features, Patches


@runtime_checkable
class BlocksModel(OpenModel, Protocol):
    """A model whose tower can be run block by block."""

    @property
    def dtype(self) -> str:
        """Dtype of the tower's matrix products."""
        ...


def block_features(model: BlocksModel, image: Patches, count: int) -> tuple[Features, ...]:
    """Tokens after blocks `depth / count`, `2 * depth / count`, … `depth`, rounded down.

    They are the residual stream before any further LayerNorm, as Probe3D (arXiv
    2404.08636) and DPT (arXiv 2103.13413) read them. The pooled vector, the embedding and the grid
    beside them are those of the whole tower.

    Args:
      model: exposes its parameters.
      image: any number of images, at least one.
      count: how many blocks.

    Raises:
      ValueError: the model does not expose its parameters, or has fewer blocks.
    """
    if "vision" not in model.params:
        raise ValueError(
            "a DPT decoder reads blocks of the tower, whose parameters this model does not expose; "
            "load it without --transformers"
        )
    config = model.config.vision
    if not 1 <= count <= config.depth:
        raise ValueError(
            f"{count} blocks of a tower are requested; expected 1 to {config.depth}, its depth"
        )
    program = partial(_program(config, model.dtype, count), model.params["vision"])
    return run_rows(model.mesh, program, image, DEFAULT_BATCH_SIZE)


@lru_cache(maxsize=8)
def _program(
    config: VisionConfig, dtype: str, count: int
) -> Callable[[Params, Patches], tuple[Features, ...]]:
    compute = Compute(dtype=dtype)
    tower = nnx.eval_shape(lambda: VisionTower(config, compute=compute, rngs=nnx.Rngs(0)))
    graphdef, _ = nnx.split(tower)

    @jax.jit
    def program(params: Params, image: Patches) -> tuple[Features, ...]:
        with jax.default_matmul_precision("highest"):
            features = _run(nnx.merge(graphdef, params), image, count)
            return jax.tree.map(replicate, features)

    return program


def _run(tower: VisionTower, image: Patches, count: int) -> tuple[Features, ...]:
    """Runs the whole tower, keeping the outputs of some blocks."""
    yx, valid = jnp.asarray(image.yx), jnp.asarray(image.valid)
    depth = len(jax.tree.leaves(tower.encoder.blocks)[0])
    outputs = tower.hidden_states(image, [(k + 1) * depth // count for k in range(count)])
    pool = multiply_out(gather(tower.pool, jnp.float32))
    pooled = pool(tower.encoder.norm(outputs[-1]), valid)
    grid, row = grid_size(yx, valid), normalize(pooled)
    return tuple(Features(tokens, pooled, row, valid, grid) for tokens in outputs)
