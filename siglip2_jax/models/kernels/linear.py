"""Dense layers as plain matrix products, in the form that TPUs run fastest."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from siglip2_jax.models.kernels.int8 import Int8, matmul_int8
from siglip2_jax.sharding import has_mesh, reshape_whole


def dense(linear: nnx.Linear | nnx.LinearGeneral, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
    """Applies a linear layer in its dtype, float32 out, heads side by side in one dimension.

    Heads in a dimension of their own have another layout in a TPU's memory, so that activations
    would be copied between the products and the attention kernel.

    Args:
      linear: the layer; only its parameters and dtype are used.
      x: its input, dimensions that it sums over flattened into one.
    """
    return _affine(x.astype(linear.dtype), *_parameters(linear))


def dense_each(
    linears: Sequence[nnx.Linear | nnx.LinearGeneral], x: Float[Array, "*B I"]
) -> list[Float[Array, "*B O"]]:
    """Applies several linear layers to one input, with a single matmul for the input gradient.

    The gradient by the input is one product for all, rather than a sum of float32 arrays as large
    as it, of which each would be written and read again.

    Args:
      linears: layers of one dtype, all with biases or all without.
      x: their input.
    """
    dtype = linears[0].dtype
    kernels, biases = zip(*map(_parameters, linears), strict=True)
    return _each(x.astype(dtype), kernels, biases)


def _parameters(linear: nnx.Linear | nnx.LinearGeneral) -> tuple[Array | Int8, Array | None]:
    """Kernel and bias in the compute dtype, heads side by side; a kernel of 8 bits stays one."""
    bias = None if linear.bias is None else linear.bias[...].astype(linear.dtype).reshape(-1)
    kernel = linear.kernel[...]
    if isinstance(kernel, Int8):
        return kernel, bias
    kernel = kernel.astype(linear.dtype)
    outputs = linear.out_features
    outputs = math.prod(outputs) if isinstance(outputs, tuple) else outputs
    return reshape_whole(kernel, (kernel.size // outputs, outputs)), bias


def _affine(x: Array, kernel: Array | Int8, bias: Array | None) -> Array:
    if isinstance(kernel, Int8):
        y = matmul_int8(x, kernel)
    else:
        y = jnp.matmul(x, kernel, preferred_element_type=jnp.float32)
    return y if bias is None else _add_bias(y, bias)


@jax.custom_vjp
def _each(
    x: Array, kernels: tuple[Array | Int8, ...], biases: tuple[Array | None, ...]
) -> list[Array]:
    return [_affine(x, *layer).astype(x.dtype) for layer in zip(kernels, biases, strict=True)]


def _each_forward(x: Array, kernels: tuple, biases: tuple) -> tuple[list[Array], tuple]:
    return _each(x, kernels, biases), (x, kernels, biases)


def _each_backward(kept: tuple, cotangents: list[Array]) -> tuple[Array, tuple, tuple]:
    x, kernels, biases = kept
    together = jnp.concatenate(kernels, -1), None if biases[0] is None else jnp.concatenate(biases)
    _, back = jax.vjp(lambda *operands: _affine(*operands).astype(x.dtype), x, *together)
    d_x, d_kernel, d_bias = back(jnp.concatenate(cotangents, -1))
    ends = np.cumsum([kernel.shape[-1] for kernel in kernels])[:-1]
    d_biases = biases if d_bias is None else jnp.split(d_bias, ends)
    return d_x, tuple(jnp.split(d_kernel, ends, -1)), tuple(d_biases)


_each.defvjp(_each_forward, _each_backward)


@jax.custom_vjp
def _add_bias(y: Float[Array, "*B O"], bias: Float[Array, " O"]) -> Float[Array, "*B O"]:
    return y + bias


def _forward(y: Array, bias: Array) -> tuple[Array, Array]:
    return y + bias, bias


def _backward(bias: Array, cotangent: Array) -> tuple[Array, Array]:
    # The sum over all rows as a product with ones. XLA's reduction of a [32768, 768] array takes
    # 0.23 ms of a v5e by the compiler's estimate, the product 0.01 ms and the time to read it.
    # Rounding to the layer's dtype loses nothing: that is what the layer's result was rounded to.
    rows = cotangent.astype(bias.dtype)
    # Eight rows of ones: the compiler makes a sum again of a product with one.
    unit_rows = jnp.ones_like(rows[..., 0])[..., None] * jnp.ones(8, rows.dtype)
    every = tuple(range(rows.ndim - 1))
    total = functools.partial(
        jax.lax.dot_general,
        unit_rows,
        rows,
        ((every, every), ((), ())),
        precision=jax.lax.Precision.HIGHEST if bias.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )
    sums = (total(out_sharding=PartitionSpec(None, None)) if has_mesh() else total())[0]
    return cotangent, sums.astype(bias.dtype)


_add_bias.defvjp(_forward, _backward)
