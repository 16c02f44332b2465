"""Devices of the program: the mesh, the sharding rules of parameters, gathering, lookup.

The mesh has the axes `("replica", "fsdp")`. A batch is split over both; parameters and optimizer
state over `fsdp` only, so that slices joined by a slow network are replicas of each other. Axes are
Explicit: an array's type says how it is split, and an operation that would move data by accident is
an error. Without a mesh every function here is the single-device code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Num

from siglip2_jax.types import ArrayLike

T = TypeVar("T")
Device: TypeAlias = jax.Device  # pyright: ignore[reportInvalidTypeForm]  # jaxlib has no stubs

AXES = ("replica", "fsdp")
BATCH = PartitionSpec(AXES)
"""How everything with a leading batch axis is split."""

# What each parameter splits, by path: the first match wins. Vectors and low-rank pairs are too
# small to be worth a gather; the token table splits features, so that its many rows never travel;
# stacked blocks never split the axis that is scanned.
WHOLE = re.compile(r"(.*/)?(bias|scale|t|b|probe)|adapters/.*")
FEATURES = re.compile(r"(.*/)?embed/table")
STACKED = re.compile(r".*/blocks/.*")

_ALIGNMENT = 64  # bytes; of arrays on a CPU
ROWS = 8  # of a tile: a part with fewer would fill a tile's memory all the same


SHARDS = 16
"""Default FSDP degree. A higher degree gives shards smaller than a TPU tile, which XLA gathers at
more than twice the traffic, by summing whole matrices that are zero elsewhere."""


def make_mesh(replica: int | None = None, devices: Sequence[Device] | None = None) -> Mesh:
    """A mesh over all devices (of all processes), or over the given ones.

    Several slices of TPUs are rows of the replica axis, so that only gradients cross the network
    between them; within a slice JAX places the axes on the torus.

    Args:
      replica: how many whole copies of the parameters there are, a multiple of the number of
        slices; None splits each over at most `SHARDS` devices of a slice.
      devices: which devices; None means all.

    Raises:
      ValueError: the devices cannot be dealt evenly to the replicas.
    """
    devices = jax.devices() if devices is None else devices
    tpus = [device for device in devices if device.platform == "tpu"]
    slices = len({getattr(device, "slice_index", 0) for device in tpus}) or 1
    if replica is None:
        together = len(devices) // slices
        fsdp = next(n for n in range(SHARDS, 0, -1) if together % n == 0)
        replica = len(devices) // fsdp
    if replica < 1 or len(devices) % replica:
        raise ValueError(
            f"{len(devices)} devices cannot form {replica} replicas; replica must divide the "
            "number of devices"
        )
    if replica % slices:
        raise ValueError(
            f"{slices} slices cannot form {replica} replicas; set replica to a multiple of "
            f"{slices}, the number of slices"
        )
    shape = (replica // slices, len(devices) // replica)
    if slices == 1:
        order = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        order = mesh_utils.create_hybrid_device_mesh(
            shape, (slices, 1), devices, allow_split_physical_axes=True
        )
    return Mesh(order, AXES, axis_types=(AxisType.Explicit,) * 2)


def param_spec(path: str, shape: Sequence[int], fsdp: int) -> PartitionSpec:
    """Partition of one parameter over `fsdp` devices.

    Args:
      path: its path, such as `vision/encoder/blocks/attn/query/kernel`.
      shape: its shape.
      fsdp: size of the mesh axis.

    Returns:
      The first dimension that `fsdp` divides into parts of at least `ROWS`, so that the parts are
      whole in memory and are summed where they belong; else the largest that it divides. The table
      above comes first. Nothing where none is divisible.
    """
    if WHOLE.fullmatch(path):
        return PartitionSpec()
    first = len(shape) - 1 if FEATURES.fullmatch(path) else bool(STACKED.fullmatch(path))
    divisible = [i for i in range(first, len(shape)) if shape[i] % fsdp == 0]
    if not divisible:
        return PartitionSpec()
    wide = (i for i in divisible if shape[i] // fsdp >= ROWS)
    axis = next(wide, max(divisible, key=lambda i: shape[i]))
    return PartitionSpec(*("fsdp" if i == axis else None for i in range(len(shape))))


def param_shardings(mesh: Mesh, shapes: Mapping[str, Any]) -> dict[str, NamedSharding]:
    """Shardings of parameters given by path, from anything that has a shape."""
    fsdp = mesh.shape["fsdp"]
    return {
        path: NamedSharding(mesh, param_spec(path, leaf.shape, fsdp))
        for path, leaf in shapes.items()
    }


def unsplit_share(mesh: Mesh, shapes: Mapping[str, Any]) -> float:
    """The share of the parameters' memory that every device of the mesh holds whole."""
    shardings = param_shardings(mesh, shapes)
    sizes = {path: math.prod(leaf.shape) for path, leaf in shapes.items()}
    unsplit = sum(n for path, n in sizes.items() if shardings[path].is_fully_replicated)
    return unsplit / sum(sizes.values())


def device_put_global(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Places an array that every process holds whole; each device takes its part."""
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def put_batch(batch: T, mesh: Mesh) -> T:
    """Places this process's rows of a global batch.

    Each device is sent its rows from where they are, with no copy on the host. What is given may be
    written again once the result is ready (`jax.block_until_ready`).

    Args:
      batch: a pytree of arrays whose leading axis is this process's part of the batch.
      mesh: the mesh.

    Returns:
      The same pytree of global arrays.
    """
    sharding = NamedSharding(mesh, BATCH)
    # A CPU's arrays may be the very memory that they are made of, whatever `may_alias` says.
    own = _copy if mesh.devices.flat[0].platform == "cpu" else np.asarray
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, own(x)), batch)


def _copy(x: ArrayLike) -> np.ndarray:
    """A copy that begins where XLA wants its arrays to begin, so that it needs none of its own."""
    x = np.asarray(x)
    memory = np.empty(x.nbytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    copy = memory[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    copy[...] = x
    return copy


def has_mesh() -> bool:
    """True while a mesh is in force."""
    return not jax.sharding.get_abstract_mesh().empty


def platform() -> str:
    """Platform of programs: "tpu", "gpu" or "cpu"; that of the mesh's devices, if there is one."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.default_backend() if mesh.empty else mesh.abstract_device.platform


def replicate(x: Array) -> Array:
    """Replicates `x` on every device; nothing moves without a mesh."""
    return jax.reshard(x, PartitionSpec(*[None] * x.ndim)) if has_mesh() else x


def gather(params: T, dtype: DTypeLike) -> T:
    """Gathers a few parameters whole on every device, in the compute dtype: FSDP's all-gather.

    The float32 master is cast on its shard, so that it travels in `dtype`. Gradients come back the
    same way: each device's own are scattered over `fsdp` as they are summed, then the shards are
    summed over `replica`. Without a mesh nothing moves.

    Args:
      params: a pytree of arrays, such as one block of a scanned tower.
      dtype: what matrices become; whole numbers, vectors (biases, norms) and scalars keep theirs.

    Returns:
      The same pytree.
    """

    def one(x: Array) -> Array:
        if x.ndim <= 1:
            return replicate(x)
        return _gather(x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x)

    return jax.tree.map(one, params)


def _gather(x: Array) -> Array:
    if not has_mesh() or jax.typeof(x).sharding.is_fully_replicated:
        return replicate(x)
    # A type that is "reduced" over an axis has gradients that are still to be summed over it, so
    # that the sum and the split are one step rather than a sum of everything on every device.
    shape, split = x.shape, jax.typeof(x).sharding.spec
    if split[0] is not None:  # heads side by side: scattered rows are then whole in memory
        split = PartitionSpec(split[0], None)
        x = jax.lax.reshape(x, (shape[0], x.size // shape[0]), out_sharding=split)
    x = jax.reshard(x, PartitionSpec(*split, reduced=frozenset({"replica"})))
    x = jax.reshard(x, PartitionSpec(*[None] * x.ndim, reduced=frozenset(AXES)))
    return reshape_whole(x, shape)


def gather_rows(x: Float[ArrayLike, "B D"]) -> Float[Array, "B D"]:
    """Gathers all rows of a batch on every device; gradients are scattered as they are summed.

    On a mesh the result takes part in matrix products only. For element-wise work on pairs of
    examples, or on arrays of another rank, `replicate` them.

    Raises:
      ValueError: `x` is not a matrix.
    """
    x = jnp.asarray(x)
    if x.ndim != 2:
        raise ValueError(
            f"gather_rows got an array of shape {x.shape}, expected [B, D]; use sharding.replicate"
        )
    return jax.reshard(x, PartitionSpec(None, None, reduced=frozenset(AXES))) if has_mesh() else x


def reshape_whole(x: Array, shape: tuple[int, ...]) -> Array:
    """Reshapes an array that every device has whole, such as one that was gathered."""
    if not has_mesh():
        return x.reshape(shape)
    reduced = jax.typeof(x).sharding.spec.reduced
    spec = PartitionSpec(*[None] * len(shape), reduced=reduced)
    return jax.lax.reshape(x, shape, out_sharding=spec)


def lookup(
    table: Num[Array, "V D"], ids: Int[Array, "B T"], dtype: DTypeLike
) -> Num[Array, "B T D"]:
    """Rows of a table whose features are split: ids travel to the features, never the table.

    Args:
      table: one row per id.
      ids: which rows; beyond the table means the last.
      dtype: of the result, and of what travels.
    """
    if not has_mesh():
        return table.at[ids].get(mode="clip").astype(dtype)
    features = jax.typeof(table).sharding.spec[-1]
    ids = jax.reshard(ids, PartitionSpec("replica", None))
    split = PartitionSpec("replica", None, features)
    rows = table.at[ids].get(mode="clip", out_sharding=split).astype(dtype)
    return jax.reshard(rows, PartitionSpec(AXES, None, None))


def split_batch(x: Array, parts: int) -> Array:
    """`[B, ...]` to `[parts, B / parts, ...]`; every device splits its own rows, nothing moves."""
    shape = (x.shape[0] // parts, parts, *x.shape[1:])
    return jnp.moveaxis(reshape_rows(x, shape), 1, 0)


def join_batch(x: Array) -> Array:
    """The inverse of `split_batch`."""
    x = jnp.moveaxis(x, 0, 1)
    return reshape_rows(x, (x.shape[0] * x.shape[1], *x.shape[2:]))


def reshape_rows(x: Array, shape: tuple[int, ...]) -> Array:
    """Reshapes an array split on its leading axis as a batch, where nothing has to move."""
    split = PartitionSpec(AXES, *[None] * (len(shape) - 1)) if has_mesh() else None
    return jax.lax.reshape(x, shape, out_sharding=split)


def ppermute_next(x: Array) -> Array:
    """Receives the part of the device before, on a ring of all devices; inside `jax.shard_map`."""
    devices = jax.lax.axis_size(AXES)
    return jax.lax.ppermute(x, AXES, [(i, (i + 1) % devices) for i in range(devices)])
