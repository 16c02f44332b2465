"""Attention over short sequences on TPU: one program holds whole images, scores never leave VMEM.

XLA writes the [B, H, K, Q] scores to HBM and pads each head to 128 lanes. This kernel reads
queries, keys and values as the projections wrote them, heads side by side in the last dimension,
and cuts heads out on chip. Scores are held transposed, keys along sublanes, so that the softmax's
sums are additions of registers and of all five products of the backward pass only one reads a
transposed operand. The backward pass computes the weights again from one float32 number for each
query and head, the base-2 logarithm of its softmax's denominator; as a program sees all keys of a
query, the row sums of FlashAttention's backward pass (arXiv 2205.14135, appendix B.4; there from
the output) are sums over the weights at hand, and the output need not be kept.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from siglip2_jax.models.kernels.products import FIRST, PLAIN, SECOND, Interpret, ahead, dot
from siglip2_jax.models.kernels.score_blocks import (
    Block,
    Shape,
    beside,
    read_all,
    read_alone,
    read_rows,
    write,
)
from siglip2_jax.sharding import AXES, has_mesh

MOST_TOKENS = 1024
"""Beyond this many keys a block of scores and its gradients outgrow VMEM."""
_MASKED = -1e30
_VMEM = 64 * 2**20

# For the backward pass: query, key, value, their mask, and the scores' log sums.
_Residuals = tuple[Array, Array, Array, Array | None, Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def short_attention(
    query: Float[Array, "B Q H C"],
    key: Float[Array, "B K H C"],
    value: Float[Array, "B K H C"],
    valid: Bool[Array, "B K"] | None,
    interpret: Interpret = False,
    length: int | None = None,
) -> Float[Array, "B Q H C"]:
    """Softmax attention over the valid keys, of which there are at most `MOST_TOKENS`.

    Products take operands in their dtype and give float32, in which the softmax is computed.

    Args:
      query: queries, not yet scaled.
      key: keys.
      value: values; those that are not valid must be finite.
      valid: which keys exist; None means all. Images without any get zeros.
      interpret: run the kernel step by step on any device; or how to, as in `pallas_call`.
      length: of the sequences that lie side by side in a row, each of which attends to itself
        alone; None means one.

    Returns:
      One value per query, in the dtype of `query`.
    """
    return _forward(query, key, value, valid, interpret, length)[0]


def _forward(
    query: Array,
    key: Array,
    value: Array,
    valid: Array | None,
    interpret: Interpret,
    length: int | None,
) -> tuple[Array, _Residuals]:
    flat = [_flat(x) for x in (query, key, value)]
    shape = Shape(query, key, length)
    out, log_sum = _call(
        functools.partial(_forward_kernel, shape=shape),
        (*flat, *_mask(valid)),
        (flat[0], jax.ShapeDtypeStruct(shape.log_sum, jnp.float32)),
        shape,
        interpret,
        cost=2,
    )
    # Both are what a policy that keeps "attn_out" must keep, for the kernel not to run again.
    out = checkpoint_name(out.reshape(query.shape), "attn_out")
    log_sum = checkpoint_name(log_sum, "attn_out")
    return out, (query, key, value, valid, log_sum)


def _backward(
    interpret: Interpret, length: int | None, residuals: _Residuals, cotangent: Array
) -> tuple[Any, ...]:
    query, key, value, valid, log_sum = residuals
    flat = [_flat(x) for x in (query, key, value)]
    shape = Shape(query, key, length)
    side_by_side = jax.ShapeDtypeStruct((*flat[0].shape[:2], 3 * flat[0].shape[2]), query.dtype)
    gradients = _call(
        functools.partial(_backward_kernel, shape=shape),
        (*flat, _flat(cotangent), log_sum, *_mask(valid)),
        (side_by_side,) if shape.packed else flat,
        shape,
        interpret,
        cost=5,
    )
    gradients = jnp.split(gradients[0], 3, axis=-1) if shape.packed else gradients
    pairs = zip(gradients, (query, key, value), strict=True)
    return (*(gradient.reshape(x.shape) for gradient, x in pairs), None)


short_attention.defvjp(_forward, _backward)


def _forward_kernel(query: Any, key: Any, value: Any, *refs: Any, shape: Shape) -> None:
    *mask, out, log_sum = refs
    keep = _keep(mask, query.shape[0], shape)

    def scores(block: Block) -> Array:
        return dot(read_all(key, block, shape), read_alone(query, block, shape), SECOND)

    for block, score in ahead(scores, shape.blocks(query.shape[0])):
        score = _masked(score * (shape.scale * math.log2(math.e)), keep, block.image)
        # An image without a valid key gets weights of 0, here and in the backward pass.
        largest = jnp.maximum(score.max(0, keepdims=True), _MASKED / 2)
        weights = jnp.exp2(score - largest)
        total = jnp.maximum(weights.sum(0, keepdims=True), 0.5)
        weights = (weights * (1 / total)).astype(value.dtype)
        values = dot(weights, read_all(value, block, shape), FIRST)
        logs = largest + jnp.log2(total)
        for head, columns in block.columns():
            write(out, block.image, head, shape, values[columns], block.rows)
            log_sum[block.image, 0, head : head + 1, block.rows] = logs[:, columns]


def _backward_kernel(
    query: Any,
    key: Any,
    value: Any,
    cotangent: Any,
    log_sum: Any,
    *refs: Any,
    shape: Shape,
) -> None:
    *mask, d_query, d_key, d_value = (*refs[:-1], *_thirds(refs[-1])) if shape.packed else refs
    keep = _keep(mask, query.shape[0], shape)
    sums: dict[int, tuple[Array, ...]] = {}  # by head: gradients of its keys and values

    def row_products(block: Block) -> tuple[Array, Array]:
        scores = dot(read_all(key, block, shape), read_alone(query, block, shape), SECOND)
        d_weights = dot(read_all(value, block, shape), read_alone(cotangent, block, shape), SECOND)
        return scores, d_weights

    for block, (score, d_weights) in ahead(row_products, shape.blocks(query.shape[0])):
        score = _masked(score * (shape.scale * math.log2(math.e)), keep, block.image)
        logs = [log_sum[block.image, 0, head : head + 1, block.rows] for head in block.heads]
        weights = jnp.exp2(score - beside(logs, 1))
        weighted = weights * d_weights
        d_scores = weighted - weights * weighted.sum(0, keepdims=True)
        d_scores = d_scores.astype(query.dtype)
        products = (
            dot(d_scores, read_rows(query, block, shape), PLAIN),
            dot(weights.astype(value.dtype), read_rows(cotangent, block, shape), PLAIN),
        )
        d_rows = dot(d_scores, read_all(key, block, shape), FIRST) * shape.scale
        for head, columns in block.columns():
            done = sums.pop(head) if block.rows.start else None
            both = products if done is None else tuple(map(jnp.add, done, products))
            if block.rows.stop == shape.queries:
                write(d_key, block.image, head, shape, both[0] * shape.scale)
                write(d_value, block.image, head, shape, both[1])
            else:
                sums[head] = both
            write(d_query, block.image, head, shape, d_rows[columns], block.rows)


def _thirds(ref: Any) -> list[Any]:
    """The three parts, side by side, of a block."""
    width = ref.shape[2] // 3
    return [ref.at[:, :, i * width : (i + 1) * width] for i in range(3)]


def _mask(valid: Array | None) -> tuple[Array, ...]:
    """The mask as an operand [B, 1, K], if there is one."""
    return () if valid is None else (valid.astype(jnp.float32)[:, None],)


def _keep(mask: list[Any], images: int, shape: Shape) -> list[Array] | None:
    """For each image the keys to keep: a column [K, 1], or one for each query [K, Q]."""
    columns = [mask[0][image].T > 0 for image in range(images)] if mask else None
    if shape.length is None:
        return columns
    own, asking = (
        jax.lax.broadcasted_iota(jnp.int32, (shape.keys, shape.queries), axis) // shape.length
        for axis in (0, 1)
    )
    return [own == asking] * images if columns is None else [x & (own == asking) for x in columns]


def _masked(scores: Array, keep: list[Array] | None, image: int) -> Array:
    return scores if keep is None else jnp.where(keep[image], scores, _MASKED)


def _flat(x: Array) -> Array:
    """Heads side by side, as projections write them."""
    return x.reshape(*x.shape[:2], -1)


def _call(
    kernel: Any,
    operands: tuple[Array, ...],
    like: Any,
    shape: Shape,
    interpret: Interpret,
    cost: int,
) -> Any:
    """Runs a kernel on every device's images, some at a time.

    Args:
      kernel: takes a block of each operand and result.
      operands: arrays with a leading batch axis.
      like: what the results look like.
      shape: sizes.
      interpret: without compiling it for a TPU.
      cost: products of queries and keys, or weights and values, in the kernel.
    """

    def local(*operands: Array) -> tuple[Array, ...]:
        batch = operands[0].shape[0]
        images = shape.images(batch)

        def spec(x: Any) -> pl.BlockSpec:
            if x.ndim == 4:  # log sums
                return pl.BlockSpec((images, 1, *x.shape[2:]), lambda i, j: (i, j, 0, 0))
            if x.shape[1] == 1:  # the mask
                return pl.BlockSpec((images, *x.shape[1:]), lambda i, j: (i, 0, 0))
            width = x.shape[2] // shape.groups
            return pl.BlockSpec((images, x.shape[1], width), lambda i, j: (i, 0, j))

        results = [jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for x in like]
        scores = batch * shape.groups * shape.heads * shape.queries * shape.keys
        return pl.pallas_call(
            kernel,
            out_shape=results,
            grid=(batch // images, shape.groups),
            in_specs=[spec(x) for x in operands],
            out_specs=[spec(x) for x in results],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=_VMEM
            ),
            cost_estimate=pl.CostEstimate(
                flops=2 * cost * scores * shape.size,
                transcendentals=scores,
                bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*operands, *results)),
            ),
            interpret=interpret,
        )(*operands)

    if not has_mesh():
        return local(*operands)
    split = PartitionSpec(AXES)
    # Nothing is replicated, so there is nothing for `check_vma` to check.
    return jax.shard_map(local, in_specs=split, out_specs=split, check_vma=False)(*operands)
