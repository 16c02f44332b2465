"""Low-rank changes of kernels (LoRA, arXiv 2106.09685), beside the parameters they change.

A kernel at `PATH` has its pair under `adapters/PATH`: `a` from inputs to `rank` numbers, `b` from
these to outputs (both with a leading depth axis where blocks are stacked) and the scalar `scale`.
Merged, the kernel is `kernel + scale * a @ b`. Blocks of a tower merge theirs when they run, so
that one block's kernels, and gradients of them, exist at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from siglip2_jax.models.kernels.low_rank import LowRank, merge_kernel
from siglip2_jax.models.siglip2 import Params, flatten, unflatten
from siglip2_jax.sharding import STACKED

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
    return _with_pairs(params, lambda path, pair: merge_pair(**pair))


def attach(params: Params) -> Params:
    """Parameters for modules: kernels of stacked blocks hold their pairs, others are merged."""

    def attached(path: str, pair: Mapping[str, Any]) -> Any:
        if STACKED.fullmatch(path):
            return LowRank(pair["kernel"], pair["a"], pair["b"] * pair["scale"])
        return merge_pair(**pair)

    return _with_pairs(params, attached)


def merge_pair(kernel: Any, a: Any, b: Any, scale: Any) -> Any:
    """The kernel that a kernel and its pair are together."""
    return merge_kernel(kernel, a, b * scale)


def _with_pairs(params: Params, join: Callable[[str, Mapping[str, Any]], Any]) -> Params:
    """Parameters in which each kernel with a pair is what `join` makes of it and its pair."""
    if ADAPTERS not in params:
        return params
    plain, pairs = split_pairs(flatten(params))
    joined = {path: join(path, {"kernel": plain[path], **pair}) for path, pair in pairs.items()}
    return unflatten(plain | joined)
