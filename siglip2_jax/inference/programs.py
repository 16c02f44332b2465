"""Compiled programs of a model, and inputs of any length run through them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from siglip2_jax.inference.vlm_tokens import States
from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import ModelConfig
from siglip2_jax.models.posemb import grid_size
from siglip2_jax.models.siglip2 import Params, abstract_model
from siglip2_jax.sharding import BATCH, device_put_global, put_batch, replicate
from siglip2_jax.types import Features, Patches

T = TypeVar("T")

CPU_TOKENS = 2048


class Programs(NamedTuple):
    """Compiled programs of a model; all take its parameters first.

    Attributes:
      encode_image: features of images.
      embed_image: embeddings of images.
      hidden_states: what some blocks of the vision tower give.
      embed_text: embeddings of texts.
    """

    encode_image: Callable[..., Any]
    embed_image: Callable[..., Any]
    hidden_states: Callable[..., Any]
    embed_text: Callable[..., Any]


@functools.cache
def programs(config: ModelConfig, dtype: str) -> Programs:
    """Programs of a model of these sizes.

    Models of the same sizes share them, so that XLA compiles each once in a process.
    """
    graphdef, _ = abstract_model(config, Compute(dtype=dtype))

    # On TPU float32 products are bfloat16 by default; "highest" makes float32 mean it.
    @jax.jit
    def encode_image(params: Params, image: Patches) -> Features:
        with jax.default_matmul_precision("highest"):
            features = nnx.merge(graphdef, params).encode_image(image)
            return jax.tree.map(replicate, features)

    @functools.partial(jax.jit, static_argnames="normalize")
    def embed_image(params: Params, image: Patches, normalize: bool) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            features = nnx.merge(graphdef, params).encode_image(image)
            return replicate(features.image if normalize else features.pooled)

    @functools.partial(jax.jit, static_argnames=("counts", "norm"))
    def hidden_states(
        params: Params, image: Patches, counts: tuple[int, ...], norm: bool
    ) -> States:
        with jax.default_matmul_precision("highest"):
            vision = nnx.merge(graphdef, params).vision
            states = jnp.stack(vision.hidden_states(image, counts), axis=1)
            states = vision.encoder.norm(states) if norm else states
            valid = jnp.asarray(image.valid)
            states = States(states, valid, grid_size(jnp.asarray(image.yx), valid))
            return jax.tree.map(replicate, states)

    @jax.jit
    def embed_text(params: Params, ids: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            return replicate(nnx.merge(graphdef, params).encode_text(ids))

    return Programs(encode_image, embed_image, hidden_states, embed_text)


def run_batches(
    program: Callable[..., Any], params: Params, inputs: Any, batch_size: int, mesh: Mesh | None
) -> Iterator[Any]:
    """Runs a program over inputs of any length, in batches of at most three sizes.

    Args:
      program: takes parameters and a batch.
      params: the model's parameters.
      inputs: a tree of arrays that share their leading axis.
      batch_size: examples of a batch, at least 1.
      mesh: where batches are split; None runs on one device.

    Yields:
      The program's outputs of each batch as NumPy arrays, without what filled it up.

    Raises:
      ValueError: `batch_size` is below 1.
    """
    total, tokens = jax.tree.leaves(inputs)[0].shape[:2]
    batch_size = most_rows(batch_size, tokens)
    # Three sizes bound both the programs compiled and the work wasted on filling up.
    devices = 1 if mesh is None else mesh.size
    sizes = sorted({-(-n // devices) * devices for n in (1, min(8, batch_size), batch_size)})
    for start in range(0, total, batch_size):
        batch = jax.tree.map(lambda x, s=start: np.asarray(x[s : s + batch_size]), inputs)
        n = jax.tree.leaves(batch)[0].shape[0]
        size = next(size for size in sizes if size >= n)
        batch = fill(batch, size)
        if mesh is not None:
            split = functools.partial(device_put_global, sharding=NamedSharding(mesh, BATCH))
            batch = jax.tree.map(split, batch)
        outputs = run_batch(program, params, batch, mesh)
        yield jax.tree.map(lambda x, n=n: np.asarray(x)[:n], outputs)


def most_rows(batch_size: int, tokens: int) -> int:
    """Examples of a batch: `batch_size`, or fewer where more of them only fall out of caches.

    Args:
      batch_size: examples that are asked for, at least 1.
      tokens: of an example.

    Raises:
      ValueError: `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    if jax.default_backend() == "cpu":
        return min(batch_size, max(1, CPU_TOKENS // tokens))
    return batch_size


def place(batch: T, mesh: Mesh | None) -> T:
    """Sends a batch to the devices of this process, which divide its size.

    What is given may be written again once the result is ready (`jax.block_until_ready`).
    """
    if mesh is not None:
        return put_batch(batch, mesh)
    # A copy by NumPy: one by JAX would wait on a CPU for the program that is running there.
    return jax.device_put(jax.tree.map(np.array, batch))


def run_batch(program: Callable[..., Any], params: Params, batch: Any, mesh: Mesh | None) -> Any:
    """Starts a program on a batch that is on the mesh; does not wait for its outputs."""
    if mesh is None:
        return program(params, batch)
    with jax.set_mesh(mesh):
        return program(params, batch)


def fill(batch: T, size: int) -> T:
    """Appends zero rows up to `size`; as `Patches` such rows are all padding."""

    def append(x: np.ndarray) -> np.ndarray:
        missing = size - len(x)
        return np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) if missing else x

    return jax.tree.map(append, batch)
