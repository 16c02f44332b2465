"""Attention over long sequences on TPU: JAX's splash attention kernel, masked by segments.

Scores exist only as blocks in VMEM, as in FlashAttention (arXiv 2205.14135). All queries are of one
segment, which valid keys share: that is how the kernel is told of keys that do not exist. It wants
whole blocks, so sequences are padded and cut.
"""

from __future__ import annotations

from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    FullMask,
    MultiHeadMask,
    SegmentIds,
    make_splash_mha_single_device,
)
from jaxtyping import Array, Bool, Float

from siglip2_jax.models.kernels.products import Interpret

_BLOCKS = range(256, 1153, 128)
"""How many tokens a program may take at a time: the more the faster, as far as VMEM goes."""


def long_attention(
    query: Float[Array, "B Q H C"],
    key: Float[Array, "B K H C"],
    value: Float[Array, "B K H C"],
    valid: Bool[Array, "B K"] | None,
    interpret: Interpret = False,
) -> Float[Array, "B Q H C"]:
    """Softmax attention over the valid keys, however many there are.

    The softmax is float32. Products are of bfloat16 operands: a TPU rounds float32 ones to that.
    Queries are scaled, and so rounded once more, where other programs scale the float32 scores.

    Args:
      query: queries, not yet scaled.
      key: keys.
      value: values; those that are not valid must be finite.
      valid: which keys exist; None means all. Images without any get zeros.
      interpret: run the kernel step by step on any device; or how to, as in `pallas_call`.

    Returns:
      One value per query, in the dtype of `query`.
    """
    batch, queries, heads, size = query.shape
    rows, columns = _block(queries), _block(key.shape[1])
    scaled = (query.astype(jnp.float32) * size**-0.5).astype(query.dtype)
    q, k, v = _heads_lead(scaled, rows), _heads_lead(key, columns), _heads_lead(value, columns)
    some = jnp.ones(key.shape[:2], bool) if valid is None else valid
    all_valid = valid is None and key.shape[1] % columns == 0
    shared = _pad(some.astype(jnp.int32), columns)
    segments = SegmentIds(q=jnp.ones((batch, q.shape[2]), jnp.int32), kv=shared)
    kernel = make_splash_mha_single_device(
        MultiHeadMask([FullMask((q.shape[2], k.shape[2]))] * heads),
        # One backward kernel computes scores once for all gradients, in blocks as the forward one.
        block_sizes=BlockSizes(
            block_q=rows,
            block_kv=columns,
            block_q_dkv=rows,
            block_kv_dkv=columns,
            use_fused_bwd_kernel=True,
        ),
        residual_checkpoint_name="attn_out",
        interpret=cast(bool, interpret),  # which `pallas_call` gets as it is
    )
    # Mosaic refuses products of bfloat16 the precision that a caller may have set for float32.
    with jax.default_matmul_precision("default"):
        values: Any = jax.vmap(kernel)(q, k, v, None if all_valid else segments)
    values = values[:, :, :queries].transpose(0, 2, 1, 3)
    # Without a valid key the kernel gives the mean of all values.
    return jnp.where(some.any(axis=1)[:, None, None, None], values, 0)


def _block(tokens: int) -> int:
    """The largest of the blocks that pad the least."""
    return min(_BLOCKS, key=lambda block: (tokens + -tokens % block, -block))


def _heads_lead(x: Array, block: int) -> Array:
    """`[B, N, H, C]` to `[B, H, N, C]`, padded to whole blocks."""
    return _pad(x, block).transpose(0, 2, 1, 3)


def _pad(x: Array, block: int) -> Array:
    """Zeros after the second axis, up to whole blocks."""
    widths = [(0, 0)] * x.ndim
    widths[1] = (0, -x.shape[1] % block)
    return jnp.pad(x, widths)
