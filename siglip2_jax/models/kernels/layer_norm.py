"""LayerNorm at the head of a residual branch, and its kernel for TPU.

XLA's sums over features cost more on a TPU than reading what they sum: by the compiler's estimate
0.24 ms for each of the sums of 32,768 tokens of 768 features, where moving them takes 0.06. The
kernel reads tokens once in either pass; the backward pass computes mean and variance again, and
adds the gradient that comes round the branch in the same turn.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from siglip2_jax.models.kernels.products import Interpret
from siglip2_jax.sharding import AXES, has_mesh, platform

NormImpl = Literal["auto", "xla", "pallas"]

_FEW = 16  # tokens of an image; with fewer, such as when generating, nothing is gained
_TOKENS = 512  # that a program takes of several images
_MOST = 1024  # that it takes of one
_ROWS = 32  # at a time: long enough sums to fill the pipelines, few enough for the registers
_TILE = 16  # rows of bfloat16
_VMEM = 64 * 2**20


def layer_norm(width: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm as released: eps 1e-6, two-pass float32 statistics; the result is float32."""
    return nnx.LayerNorm(width, epsilon=1e-6, use_fast_variance=False, dtype=jnp.float32, rngs=rngs)


def residual_layer_norm(
    norm: nnx.LayerNorm, x: Float[Array, "B N D"], dtype: DTypeLike, impl: NormImpl = "auto"
) -> tuple[Float[Array, "B N D"], Float[Array, "B N D"]]:
    """The residual stream and, normalised, what a branch of it reads.

    Statistics are float32 and two-pass. The kernel adds the gradients of both results before it
    rounds them to the dtype of `x`; XLA rounds that of the second one first.

    Args:
      norm: the layer, its result float32.
      x: the residual stream.
      dtype: of the second result.
      impl: "xla" leaves the program to XLA; "pallas" is the kernel, which off TPU is interpreted,
        slowly, for tests; "auto" is the kernel for bfloat16 on TPU, unless images have few tokens
        or more than fit that cannot be divided.

    Returns:
      `x` itself, which is to be used in its place, and `norm(x)`.
    """
    if impl == "auto":
        tokens = x.shape[1]
        possible = x.dtype == jnp.bfloat16 and tokens >= _FEW and _together(tokens) <= _MOST
        impl = "pallas" if possible and platform() == "tpu" else "xla"
    if impl == "xla":
        return x, norm(x).astype(dtype)
    assert norm.scale is not None and norm.bias is not None
    scale, bias = (param[...].astype(jnp.float32) for param in (norm.scale, norm.bias))
    static = (norm.epsilon, jnp.dtype(dtype), platform() != "tpu")
    return _branch(x, scale, bias, *static)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _branch(
    x: Array, scale: Array, bias: Array, epsilon: float, dtype: Any, interpret: Interpret
) -> tuple[Array, Array]:
    return _forward(x, scale, bias, epsilon, dtype, interpret)[0]


def _forward(
    x: Array, scale: Array, bias: Array, epsilon: float, dtype: Any, interpret: Interpret
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    kernel = functools.partial(_forward_kernel, epsilon=epsilon)
    (y,) = _call(kernel, (x,), (scale, bias), (dtype,), interpret)
    return (x, y), (x, scale)


def _backward(
    epsilon: float,
    dtype: Any,
    interpret: Interpret,
    residuals: tuple[Array, Array],
    cotangents: tuple[Array, Array],
) -> tuple[Array, Array, Array]:
    x, scale = residuals
    kernel = functools.partial(_backward_kernel, epsilon=epsilon)
    d_x, sums = _call(kernel, (x, *cotangents), (scale,), (x.dtype, None), interpret)
    d_scale, d_bias = sums.sum(0)
    return d_x, d_scale, d_bias


_branch.defvjp(_forward, _backward)


def _forward_kernel(x: Any, scale: Any, bias: Any, y: Any, *, epsilon: float) -> None:
    def some(image: Array, rows: Any) -> None:
        normal, _ = _normal(x[image, rows, :], epsilon)
        y[image, rows, :] = (normal * scale[...] + bias[...]).astype(y.dtype)

    _each(some, x.shape)


def _backward_kernel(
    x: Any, around: Any, through: Any, scale: Any, d_x: Any, sums: Any, *, epsilon: float
) -> None:
    sums[...] = jnp.zeros_like(sums)

    def some(image: Array, rows: Any) -> None:
        normal, deviation = _normal(x[image, rows, :], epsilon)
        d_y = through[image, rows, :].astype(jnp.float32)
        d_normal = d_y * scale[...]
        mean = d_normal.mean(-1, keepdims=True)
        slope = (d_normal * normal).mean(-1, keepdims=True)
        gradient = (d_normal - mean - normal * slope) * deviation
        gradient += around[image, rows, :].astype(jnp.float32)
        d_x[image, rows, :] = gradient.astype(d_x.dtype)
        sums[0, 0:1] += (d_y * normal).sum(0, keepdims=True)
        sums[0, 1:2] += d_y.sum(0, keepdims=True)

    _each(some, x.shape)


def _normal(x: Array, epsilon: float) -> tuple[Array, Array]:
    """Tokens with mean 0 and variance 1, and the factor that gave them this variance."""
    x = x.astype(jnp.float32)
    x -= x.mean(-1, keepdims=True)
    deviation = jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + epsilon)
    return x * deviation, deviation


def _each(some: Any, shape: tuple[int, ...]) -> None:
    """Calls `some` with image and rows, until all of a block are done."""
    images, tokens, _ = shape
    chunks = tokens // _ROWS

    def step(index: Array, carry: None) -> None:
        some(index // chunks, pl.ds(pl.multiple_of(index % chunks * _ROWS, _ROWS), _ROWS))

    if chunks:
        jax.lax.fori_loop(0, images * chunks, step, None, unroll=2)
    if tokens % _ROWS:
        last = slice(chunks * _ROWS, tokens)
        jax.lax.fori_loop(0, images, lambda image, _: some(image, last), None)


def _together(tokens: int) -> int:
    """Number of an image's tokens that a program takes: all, or an equal part in whole tiles."""
    if tokens <= _MOST:
        return tokens
    parts = (n for n in range(_MOST, 0, -_TILE) if tokens % n == 0)
    return next(parts, tokens)


def _call(
    kernel: Any,
    streams: tuple[Array, ...],
    params: tuple[Array, ...],
    results: tuple[Any, ...],
    interpret: Interpret,
) -> Any:
    """Runs a kernel on every device's images, some at a time.

    Args:
      kernel: takes a block of each stream, the parameters, and a block of each result.
      streams: arrays of tokens.
      params: vectors that every program reads whole.
      results: dtypes of results like the streams; None for two sums over the block's tokens.
      interpret: without compiling it for a TPU.
    """

    def local(streams: tuple[Array, ...], params: tuple[Array, ...]) -> tuple[Array, ...]:
        batch, tokens, width = streams[0].shape
        images = max(1, min(batch, _TOKENS // tokens))
        images = next(i for i in range(images, 0, -1) if batch % i == 0)
        together = _together(tokens)
        parts = tokens // together
        block = pl.BlockSpec((images, together, width), lambda i, j: (i, j, 0))
        sums = pl.BlockSpec((1, 2, width), lambda i, j: (i * parts + j, 0, 0))
        return pl.pallas_call(
            kernel,
            out_shape=[
                jax.ShapeDtypeStruct(*shape)
                for shape in (
                    ((batch // images * parts, 2, width), jnp.float32)
                    if dtype is None
                    else ((batch, tokens, width), dtype)
                    for dtype in results
                )
            ],
            grid=(batch // images, parts),
            in_specs=[block] * len(streams)
            + [pl.BlockSpec((1, width), lambda i, j: (0, 0))] * len(params),
            out_specs=[sums if dtype is None else block for dtype in results],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=_VMEM
            ),
            cost_estimate=pl.CostEstimate(
                flops=0,  # of matrix products, which is what is counted
                transcendentals=batch * tokens,
                bytes_accessed=sum(x.size * x.dtype.itemsize for x in streams) * 2,
            ),
            interpret=interpret,
        )(*streams, *(param[None] for param in params))

    if not has_mesh():
        return local(streams, params)
    split = PartitionSpec(AXES)
    # `check_vma` would want parameters marked as different on every device.
    return jax.shard_map(
        local, in_specs=(split, PartitionSpec()), out_specs=split, check_vma=False
    )(streams, params)
