"""Adapters of a stage: kernels that get a low-rank pair, and the pairs' fresh values."""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection, Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from siglip2_jax.config import Adapters
from siglip2_jax.models.low_rank import KERNEL, pair_path, pair_shapes

Shapes = Mapping[str, jax.ShapeDtypeStruct]


class Pairs:
    """The low-rank pairs of a stage.

    Attributes:
      kernels: what each adapted kernel belongs to, by path.
      shapes: `jax.ShapeDtypeStruct` of every leaf, by path.
      constants: paths of the leaves that do not learn.
    """

    def __init__(self, adapters: Sequence[Adapters], shapes: Shapes):
        """Matches kernels.

        Args:
          adapters: of the stage.
          shapes: of the model's parameters, by path.

        Raises:
          ValueError: an entry matches no kernel that is left.
        """
        self.kernels: dict[str, Adapters] = {}
        for entry in adapters:
            paths = [path for path in shapes if re.fullmatch(entry.pattern, path)]
            kernels = [p for p in paths if p.endswith(f"/{KERNEL}") and p not in self.kernels]
            if not kernels:
                raise ValueError(_no_kernel(entry, paths, list(shapes)))
            self.kernels |= dict.fromkeys(kernels, entry)
        self.shapes = {
            path: jax.ShapeDtypeStruct(shape, jnp.float32)
            for kernel, entry in self.kernels.items()
            for path, shape in pair_shapes(kernel, shapes, entry.rank).items()
        }
        self.constants = {pair_path(kernel, "scale") for kernel in self.kernels}

    def check(self, trainable: Collection[str]) -> None:
        """Raises ValueError where a kernel would learn by its pair and by itself."""
        for kernel in filter(set(trainable).__contains__, self.kernels):
            raise ValueError(
                f"a group of the optimizer trains {kernel}, which has an adapter; narrow the "
                "group's pattern (paths of adapters begin with adapters/), or freeze it"
            )

    def init(self, key: Array) -> dict[str, Array]:
        """Fresh pairs, which change nothing yet: `b` is 0, `a` as peft and PyTorch draw it."""
        leaves = {}
        for kernel, entry in self.kernels.items():
            a, b = (self.shapes[pair_path(kernel, leaf)] for leaf in "ab")
            draw = jax.random.fold_in(key, zlib.crc32(kernel.encode()))
            bound = a.shape[-2] ** -0.5  # kaiming_uniform_(a=sqrt(5))
            leaves[pair_path(kernel, "a")] = jax.random.uniform(
                draw, a.shape, minval=-bound, maxval=bound
            )
            leaves[pair_path(kernel, "b")] = jnp.zeros(b.shape)
            leaves[pair_path(kernel, "scale")] = jnp.float32(entry.scale)
        return leaves


def _no_kernel(entry: Adapters, paths: Sequence[str], shapes: Sequence[str]) -> str:
    example = next(path for path in shapes if path.endswith(f"/{KERNEL}"))
    start = f"Adapters.pattern {entry.pattern!r} matches "
    if not paths:
        return f"{start}no parameter; patterns match whole paths of kernels such as {example!r}"
    if not any(path.endswith(f"/{KERNEL}") for path in paths):
        return f"{start}{paths[0]}, which is no kernel; match kernels, such as {example!r}"
    return f"{start}only kernels of entries before it; remove it, or put it first"
