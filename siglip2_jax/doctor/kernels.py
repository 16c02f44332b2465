"""Kernels of the towers against XLA's programs: attention and LayerNorm."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from siglip2_jax.doctor.check import Finding, skipped
from siglip2_jax.doctor.compare import avoid, compare, noise
from siglip2_jax.doctor.shapes import Sequences, Streams
from siglip2_jax.models.kernels.attention import AttentionImpl, attend, choose
from siglip2_jax.models.kernels.layer_norm import layer_norm, residual_layer_norm
from siglip2_jax.models.kernels.rows import arrange
from siglip2_jax.sharding import platform

INTERPRETED = 48  # the most tokens, where kernels are interpreted
XLA = "XLA computes it"


def check_attention(shape: Sequences, settings: Sequence[str]) -> list[Finding]:
    """The kernel that runs for a shape, also with sequences side by side where they run so."""
    name = f"attention, {shape}"
    if platform() == "cpu":
        shape = _small(shape)
    parts = [
        (shape.images, tokens, shape.heads, shape.size)
        for tokens in (shape.queries, shape.keys, shape.keys)
    ]
    query, key, value = (noise(i, part, shape.dtype) for i, part in enumerate(parts))
    lengths = 1 + jnp.arange(shape.images) * 5 % shape.keys
    valid = jnp.arange(shape.keys) < lengths[:, None] if shape.masked else None
    impl: AttentionImpl = shape.impl
    if impl == "auto":
        impl = "pallas" if platform() == "cpu" else choose(query, key, valid)
    if impl == "xla":
        return [skipped(name, XLA)]
    way_out = avoid(settings, "attention")

    def plain(query: Array, key: Array, value: Array) -> Array:
        return attend(query, key, value, valid, "xla")

    def fast(query: Array, key: Array, value: Array) -> Array:
        return attend(query, key, value, valid, impl)

    label = "own kernel" if callable(impl) else impl
    findings = compare(f"{name}: {label}", fast, plain, (query, key, value), way_out)
    stream = query.reshape(*query.shape[:2], -1)
    rows = arrange(stream, valid, impl) if shape.queries == shape.keys else None
    if rows is not None:

        def side_by_side(query: Array, key: Array, value: Array) -> Array:
            mask = None if valid is None else rows.pack(valid)
            query, key, value = (rows.pack(x) for x in (query, key, value))
            return rows.unpack(attend(query, key, value, mask, impl, rows.length))

        findings += compare(f"{name}: rows", side_by_side, plain, (query, key, value), way_out)
    return findings


def check_layer_norm(shape: Streams, settings: Sequence[str]) -> list[Finding]:
    """The kernel of LayerNorm, with the gradient that comes round the branch."""
    name = f"LayerNorm, {shape}"
    impl = shape.impl
    if platform() == "cpu":
        shape = dataclasses.replace(
            shape, images=1, tokens=min(shape.tokens, INTERPRETED), width=min(shape.width, 128)
        )
        impl = "pallas" if impl == "auto" else impl
    if impl == "xla" or (impl == "auto" and (platform() != "tpu" or shape.dtype != "bfloat16")):
        return [skipped(name, XLA)]
    graph, params = nnx.split(layer_norm(shape.width, nnx.Rngs(0)))
    x = 3 + 2 * noise(0, (shape.images, shape.tokens, shape.width), jnp.float32)
    vectors = 1 + noise(1, (2, shape.width), jnp.float32, 0.3)

    def program(kind):
        def run(x: Array, vectors: Array) -> tuple[Array, Array]:
            scale, bias = vectors.astype(jnp.float32)
            state = jax.tree.map(lambda _: scale, params)
            state["bias"].set_value(bias)
            return residual_layer_norm(nnx.merge(graph, state), x, x.dtype, kind)

        return run

    operands = x.astype(shape.dtype), vectors.astype(shape.dtype)
    return compare(
        f"{name}: kernel", program(impl), program("xla"), operands, avoid(settings, "norm")
    )


def _small(shape: Sequences) -> Sequences:
    """A shape that an interpreted kernel does in a moment."""
    return dataclasses.replace(
        shape,
        images=min(shape.images, 4),
        queries=min(shape.queries, INTERPRETED),
        keys=min(shape.keys, INTERPRETED),
        heads=min(shape.heads, 2),
    )
