"""Kernels with a low-rank change, and what they are together."""

from __future__ import annotations

import math
from typing import TypeVar

import jax
from jaxtyping import Array, Float

from siglip2_jax.sharding import has_mesh, reshape_whole
from siglip2_jax.types import ArrayLike, pytree_dataclass

T = TypeVar("T")


@pytree_dataclass
class LowRank:
    """A kernel and its change, `kernel + a @ b`, as the value of a parameter of stacked blocks.

    Attributes:
      kernel: the kernel.
      a: from inputs to the rank; a leading depth axis where blocks are stacked.
      b: from the rank to outputs, scaled.
    """

    kernel: Float[ArrayLike, ...]
    a: Float[ArrayLike, "*L I R"]
    b: Float[ArrayLike, "*L R O"]


def merge_block(block: T) -> T:
    """A block in whose parameters changes of kernels are merged."""

    def merged(x):
        return merge_kernel(x.kernel, x.a, x.b) if isinstance(x, LowRank) else x

    return jax.tree.map(merged, block, is_leaf=lambda x: isinstance(x, LowRank))


@jax.jit
def merge_kernel(
    kernel: Float[Array, ...], a: Float[Array, "*L I R"], b: Float[Array, "*L R O"]
) -> Float[Array, ...]:
    """`kernel + a @ b` in float32, split over devices as the kernel is."""
    lead, (width, rank) = a.ndim - 2, a.shape[-2:]
    inputs = lead
    while math.prod(kernel.shape[lead:inputs]) < width:
        inputs += 1
    layers = tuple(range(lead))
    return kernel + jax.lax.dot_general(
        reshape_whole(a, (*kernel.shape[:inputs], rank)),
        reshape_whole(b, (*kernel.shape[:lead], rank, *kernel.shape[inputs:])),
        (((inputs,), (lead,)), (layers, layers)),
        precision=jax.lax.Precision.HIGHEST,
        out_sharding=jax.typeof(kernel).sharding.spec if has_mesh() else None,
    )
