"""All that the program knows of devices: the mesh in force and the gathering of parameters."""

from __future__ import annotations

from typing import TypeVar

import jax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

T = TypeVar("T")


def gather(params: T, dtype: DTypeLike) -> T:
    """Every device gets the whole of a few parameters, in the compute dtype: FSDP's all-gather.

    The float32 master is cast on its shard, so that it travels in `dtype`. Without a mesh nothing
    moves.

    Args:
      params: a pytree of arrays, such as one block of a scanned tower.
      dtype: what matrices become; vectors (biases, norms) and scalars keep their dtype.

    Returns:
      The same pytree.
    """
    alone = jax.sharding.get_abstract_mesh().empty

    def whole(x: jax.Array) -> jax.Array:
        x = x.astype(dtype) if x.ndim > 1 else x
        return x if alone else jax.reshard(x, PartitionSpec(*[None] * x.ndim))

    return jax.tree.map(whole, params)
