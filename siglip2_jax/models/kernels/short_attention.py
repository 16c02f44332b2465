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
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from siglip2_jax.models.kernels.products import FIRST, LANES, PLAIN, SECOND, Interpret, ahead, dot
from siglip2_jax.sharding import AXES, has_mesh

MOST_TOKENS = 1024
"""Beyond this many keys a block of scores and its gradients outgrow VMEM."""
_QUERIES = 256  # at a time: more would not fit the registers' spill space at 1,024 keys
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
    shape = _Shape(query, key, length)
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
    shape = _Shape(query, key, length)
    # Of one input, all three side by side are what its gradient is a single product of.
    packed = shape.groups == 1 and shape.queries == shape.keys and flat[0].shape[-1] % LANES == 0
    side_by_side = jax.ShapeDtypeStruct((*flat[0].shape[:2], 3 * flat[0].shape[2]), query.dtype)
    gradients = _call(
        functools.partial(_backward_kernel, shape=shape, packed=packed),
        (*flat, _flat(cotangent), log_sum, *_mask(valid)),
        (side_by_side,) if packed else flat,
        shape,
        interpret,
        cost=5,
    )
    gradients = jnp.split(gradients[0], 3, axis=-1) if packed else gradients
    pairs = zip(gradients, (query, key, value), strict=True)
    return (*(gradient.reshape(x.shape) for gradient, x in pairs), None)


short_attention.defvjp(_forward, _backward)


class _Shape:
    """Sizes the kernels are made for.

    Attributes:
      queries: of an image.
      keys: of an image.
      length: of the sequences in what is called an image here, if there are several.
      size: C, of a head.
      heads: that a program takes: all where there are few scores; of long sequences as many as
        fill groups of lanes, which keeps programs short.
      groups: how many programs share the heads of an image.
      scale: of scores.
      log_sum: shape of the numbers kept for the backward pass.
    """

    def __init__(self, query: Array, key: Array, length: int | None):
        batch, self.queries, heads, self.size = query.shape
        self.keys, self.length = key.shape[1], length
        self.scale = self.size**-0.5
        together = math.lcm(self.size, LANES) // self.size
        self.groups = heads // together if self.queries > _QUERIES and not heads % together else 1
        self.heads = heads // self.groups
        self.log_sum = (batch, self.groups, self.heads, self.queries)

    def units(self, images: int) -> Iterator[tuple[int, int, slice]]:
        """Image, head and queries of each block of scores."""
        for image in range(images):
            for head in range(self.heads):
                for start in range(0, self.queries, _QUERIES):
                    yield image, head, slice(start, min(start + _QUERIES, self.queries))

    def images(self, batch: int) -> int:
        """Number of images that a program takes: enough work to hide its start.

        A divisor of `batch`.
        """
        wanted = max(1, LANES * 2 // max(self.queries, self.keys))
        return next(i for i in range(min(wanted, batch), 0, -1) if batch % i == 0)


def _forward_kernel(query: Any, key: Any, value: Any, *refs: Any, shape: _Shape) -> None:
    *mask, out, log_sum = refs
    keep = _keep(mask, query.shape[0], shape)

    def scores(unit: tuple[int, int, slice]) -> Array:
        image, head, rows = unit
        return dot(
            _read(key, image, head, shape), _read_alone(query, image, head, shape, rows), SECOND
        )

    for unit, score in ahead(scores, shape.units(query.shape[0])):
        image, head, rows = unit
        score = _masked(score * (shape.scale * math.log2(math.e)), keep, image)
        # An image without a valid key gets weights of 0, here and in the backward pass.
        largest = jnp.maximum(score.max(0, keepdims=True), _MASKED / 2)
        weights = jnp.exp2(score - largest)
        total = jnp.maximum(weights.sum(0, keepdims=True), 0.5)
        weights = (weights * (1 / total)).astype(value.dtype)
        values = dot(weights, _read(value, image, head, shape), FIRST)
        _write(out, image, head, shape, values, rows)
        log_sum[image, 0, head : head + 1, rows] = largest + jnp.log2(total)


def _backward_kernel(
    query: Any,
    key: Any,
    value: Any,
    cotangent: Any,
    log_sum: Any,
    *refs: Any,
    shape: _Shape,
    packed: bool,
) -> None:
    *mask, d_query, d_key, d_value = (*refs[:-1], *_thirds(refs[-1])) if packed else refs
    keep = _keep(mask, query.shape[0], shape)
    sums: tuple[Array, ...] = ()

    def row_products(unit: tuple[int, int, slice]) -> tuple[Array, Array]:
        image, head, rows = unit
        scores = dot(
            _read(key, image, head, shape), _read_alone(query, image, head, shape, rows), SECOND
        )
        d_weights = dot(
            _read(value, image, head, shape),
            _read_alone(cotangent, image, head, shape, rows),
            SECOND,
        )
        return scores, d_weights

    for unit, (score, d_weights) in ahead(row_products, shape.units(query.shape[0])):
        image, head, rows = unit
        score = _masked(score * (shape.scale * math.log2(math.e)), keep, image)
        weights = jnp.exp2(score - log_sum[image, 0, head : head + 1, rows])
        weighted = weights * d_weights
        d_scores = weighted - weights * weighted.sum(0, keepdims=True)
        d_scores = d_scores.astype(query.dtype)
        products = (
            dot(d_scores, _read(query, image, head, shape, rows), PLAIN),
            dot(weights.astype(value.dtype), _read(cotangent, image, head, shape, rows), PLAIN),
        )
        sums = products if rows.start == 0 else tuple(map(jnp.add, sums, products))
        if rows.stop == shape.queries:
            _write(d_key, image, head, shape, sums[0] * shape.scale)
            _write(d_value, image, head, shape, sums[1])
        d_rows = dot(d_scores, _read(key, image, head, shape), FIRST) * shape.scale
        _write(d_query, image, head, shape, d_rows, rows)


def _thirds(ref: Any) -> list[Any]:
    """The three parts, side by side, of a block."""
    width = ref.shape[2] // 3
    return [ref.at[:, :, i * width : (i + 1) * width] for i in range(3)]


def _window(head: int, shape: _Shape) -> tuple[int, int]:
    """Lanes to read for a head, and its offset in them.

    A head within a group of 128 lanes is read as that group, since moving it to the first lanes
    costs more than computing with its neighbour and leaving the result. Others are cut out.
    """
    start, stop = head * shape.size, (head + 1) * shape.size
    group = start // LANES * LANES
    if stop > group + LANES:
        return start, stop
    return group, min(group + LANES, shape.heads * shape.size)


def _read(ref: Any, image: int, head: int, shape: _Shape, rows: slice = slice(None)) -> Array:
    """Reads the lanes that hold a head, perhaps with neighbours."""
    return ref[image, rows, slice(*_window(head, shape))]


def _read_alone(ref: Any, image: int, head: int, shape: _Shape, rows: slice) -> Array:
    """Reads a head with zeros for its neighbours, so that a product over lanes counts it alone."""
    window = _read(ref, image, head, shape, rows)
    first, last = _window(head, shape)
    if last - first == shape.size:
        return window
    lane = first + jax.lax.broadcasted_iota(jnp.int32, (1, last - first), 1)
    in_head = (lane >= head * shape.size) & (lane < (head + 1) * shape.size)
    return jnp.where(in_head, window, jnp.zeros_like(window))


def _write(
    ref: Any, image: int, head: int, shape: _Shape, window: Array, rows: slice = slice(None)
) -> None:
    """Writes a head, without its neighbours."""
    start = head * shape.size
    before = start - _window(head, shape)[0]
    head_values = window[:, before : before + shape.size]
    ref[image, rows, start : start + shape.size] = head_values.astype(ref.dtype)


def _mask(valid: Array | None) -> tuple[Array, ...]:
    """The mask as an operand [B, 1, K], if there is one."""
    return () if valid is None else (valid.astype(jnp.float32)[:, None],)


def _keep(mask: list[Any], images: int, shape: _Shape) -> list[Array] | None:
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
    shape: _Shape,
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

        def block(x: Any) -> pl.BlockSpec:
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
            in_specs=[block(x) for x in operands],
            out_specs=[block(x) for x in results],
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
