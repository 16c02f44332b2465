"""Low-rank changes of kernels (LoRA, arXiv 2106.09685), beside the parameters they change.

A kernel at `PATH` has its pair under `adapters/PATH`: `a` from inputs to `rank` numbers, `b` from
these to outputs (both with a leading depth axis where blocks are stacked) and the scalar `scale`.
Merged, the kernel is `kernel + scale * a @ b`. `attach` keeps the three apart where blocks are
stacked, so that no gradient of a kernel is ever computed or stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array, Float

from siglip2_jax.models.kernels.linear import LowRank
from siglip2_jax.models.siglip2 import Params, flatten, unflatten
from siglip2_jax.sharding import STACKED, has_mesh, reshape_whole

ADAPTERS = "adapters"  # within a tree, as a first name
KERNEL = "kernel"
Shape = tuple[int, ...]


def pair_path(kernel: str, leaf: str) -> str:
    """The path of `a`, `b` or `scale` of a kernel's pair."""
    return f"{ADAPTERS}/{kernel}/{leaf}"


def is_pair(path: str) -> bool:
    """True for paths of leaves of pairs."""
    return path.startswith(f"{ADAPTERS}/")


def kernel_of(path: str) -> str:
    """The kernel that a leaf of a pair belongs to."""
    return path.partition("/")[2].rpartition("/")[0]


def pair_shapes(kernel: str, shapes: Mapping[str, Any], rank: int) -> dict[str, Shape]:
    """Shapes of a kernel's pair, by path.

    Args:
      kernel: path of the kernel.
      shapes: anything that has a shape, by path: the kernel's and that of the bias beside it, which
        tells inputs from outputs.
      rank: size between `a` and `b`.
    """
    stacked = int(bool(STACKED.fullmatch(kernel)))
    depth = shapes[kernel].shape[:stacked]
    outputs = math.prod(shapes[kernel.removesuffix(KERNEL) + "bias"].shape[stacked:])
    inputs = math.prod(shapes[kernel].shape[stacked:]) // outputs
    leaves = {"a": (*depth, inputs, rank), "b": (*depth, rank, outputs), "scale": ()}
    return {pair_path(kernel, leaf): shape for leaf, shape in leaves.items()}


def split_pairs(params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Parameters by path without pairs, and the pairs: `a`, `b` and `scale` by their kernel."""
    plain, pairs = {}, {}
    for path, leaf in params.items():
        if is_pair(path):
            pairs.setdefault(kernel_of(path), {})[path.rpartition("/")[2]] = leaf
        else:
            plain[path] = leaf
    return plain, pairs


def merge(params: Params) -> Params:
    """The parameters of a plain model; those without pairs are given back as they are."""
    if ADAPTERS not in params:
        return params
    plain, pairs = split_pairs(flatten(params))
    merged = {kernel: merge_kernel(plain[kernel], **pair) for kernel, pair in pairs.items()}
    return unflatten(plain | merged)


def attach(params: Params) -> Params:
    """Parameters for the modules: kernels of stacked blocks hold their pairs, others are merged."""
    if ADAPTERS not in params:
        return params
    plain, pairs = split_pairs(flatten(params))
    for kernel, pair in pairs.items():
        if STACKED.fullmatch(kernel):
            plain[kernel] = LowRank(plain[kernel], pair["a"], pair["b"] * pair["scale"])
        else:
            plain[kernel] = merge_kernel(plain[kernel], **pair)
    return unflatten(plain)


@jax.jit
def merge_kernel(
    kernel: Float[Array, ...],
    a: Float[Array, "*L I R"],
    b: Float[Array, "*L R O"],
    scale: Float[Array, ""],
) -> Float[Array, ...]:
    """`kernel + scale * a @ b` in float32, split over devices as the kernel is."""
    lead, rank = a.ndim - 2, a.shape[-1]
    inputs = next(
        i for i in range(lead, kernel.ndim) if math.prod(kernel.shape[lead:i]) == a.shape[-2]
    )
    a = reshape_whole(a, (*kernel.shape[:inputs], rank))
    b = reshape_whole(b * scale, (*kernel.shape[:lead], rank, *kernel.shape[inputs:]))
    layers = tuple(range(lead))
    return kernel + jax.lax.dot_general(
        a,
        b,
        (((inputs,), (lead,)), (layers, layers)),
        precision=jax.lax.Precision.HIGHEST,
        out_sharding=jax.typeof(kernel).sharding.spec if has_mesh() else None,
    )
