"""Links between devices: sums, gathers and scattered sums along both axes of the mesh."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from siglip2_jax.doctor.check import Finding, Findings, at_least, failed, passed, skipped
from siglip2_jax.doctor.rates import seconds_of
from siglip2_jax.sharding import AXES
from siglip2_jax.train.chips import find_chip

SHARE = 0.1
"""The least share of what all links of a chip carry: one axis uses some of them."""
_COLUMNS = 1024
_ROWS = {"cpu": 64}  # of what is added up or put together, in float32
_MANY_ROWS = 65_536

Collective = Callable[[Array, str], Array]

COLLECTIVES: dict[str, Collective] = {
    "sum": lambda x, axis: jax.lax.psum(x, axis),
    "gather": lambda x, axis: jax.lax.all_gather(x, axis, tiled=True),
    "scattered sum": lambda x, axis: jax.lax.psum_scatter(x, axis, tiled=True),
}
"""Operations that training uses, on the rows of one device."""


def check_links(mesh: Mesh) -> Findings:
    """Results of the collectives of all devices, and rates of gathers, along each axis."""
    for axis in AXES:
        size = mesh.shape[axis]
        if size == 1:
            yield skipped(f"links along {axis}", "the axis has one device")
            continue
        rows = _ROWS.get(mesh.devices.flat[0].platform, _MANY_ROWS)
        rows += -rows % size
        for name, collective in COLLECTIVES.items():
            yield _check_result(mesh, axis, rows, name, collective)
        yield _check_rate(mesh, axis, rows)


def _check_result(mesh: Mesh, axis: str, rows: int, name: str, collective: Collective) -> Finding:
    """Whole numbers, different on every device, are added and moved without any error."""
    check, size = f"{name} along {axis}", mesh.shape[axis]
    share = rows // size

    def numbers(device: Array | int, other: Array, count: int) -> Array:
        """Rows of a device: of its place along the axis, and along the other one."""
        row = jax.lax.broadcasted_iota(jnp.float32, (count, _COLUMNS), 0) % 512
        return row + 16 * device + 1024 * other

    def local() -> Array:
        place: dict[str, Array] = dict(zip(AXES, map(jax.lax.axis_index, AXES), strict=True))
        mine = place.pop(axis)
        (other,) = place.values()
        if name == "gather":
            result = collective(numbers(mine, other, share), axis)
            expected = jnp.concatenate([numbers(i, other, share) for i in range(size)])
        else:
            result = collective(numbers(mine, other, rows), axis)
            expected = size * numbers(0, other, rows) + 8 * size * (size - 1)
        if name == "scattered sum":
            expected = jax.lax.dynamic_slice_in_dim(expected, mine * share, share)
        return jax.lax.psum(jnp.sum(result != expected), AXES)

    run = jax.shard_map(local, mesh=mesh, in_specs=(), out_specs=PartitionSpec(), check_vma=False)
    wrong = int(jax.jit(run)())
    if wrong:
        return failed(
            check,
            f"{wrong:,} wrong numbers",
            "exact",
            "ask for another slice; between slices, look at the network (docs/tpu.md)",
        )
    return passed(check, f"exact on {mesh.size} devices", "exact")


def _check_rate(mesh: Mesh, axis: str, rows: int) -> Finding:
    """Bytes a second that each device gets from the others of an axis."""
    shape = rows // mesh.shape[axis] * mesh.size, _COLUMNS
    split = PartitionSpec(AXES)

    @jax.jit
    def run(x: Array) -> Array:
        gather = functools.partial(jax.lax.all_gather, axis_name=axis, tiled=True)
        return jax.shard_map(gather, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)(x)

    zeros = jax.jit(lambda: jnp.zeros(shape), out_shardings=NamedSharding(mesh, split))()
    incoming = (mesh.shape[axis] - 1) * zeros.nbytes / mesh.size
    return judge_rate(f"rate along {axis}", incoming / seconds_of(run, zeros), mesh, axis)


def judge_rate(check: str, rate: float, mesh: Mesh, axis: str) -> Finding:
    """A rate against that of the chip's links; between slices it is not known."""
    kind = mesh.devices.flat[0].device_kind
    chip = find_chip(kind)
    slices = {getattr(device, "slice_index", 0) for device in mesh.devices.flat}
    shown = f"{rate / 1e9:.3g} GB/s"
    if chip is None:
        return skipped(check, f"{shown}; that of a {kind} is not known")
    if axis == "replica" and len(slices) > 1:
        return skipped(check, f"{shown}; that of the network between slices is not known")
    return at_least(
        check,
        rate / 1e9,
        SHARE * chip.ici_bandwidth / 1e9,
        "{:.3g} GB/s",
        "ask for another slice; on GPUs look at `nvidia-smi topo -m`",
    )
