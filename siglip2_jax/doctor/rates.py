"""Rates of a device: matrix products, which are checked, and its memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from siglip2_jax.doctor.check import Finding, Findings, at_least, failed, passed, skipped
from siglip2_jax.sharding import Device
from siglip2_jax.train.chips import find_chip

SHARE = 0.5
"""The least share of a published rate: healthy chips reach more, a throttled or shared one less."""
_RUNS = 3  # the fastest counts


class Size(NamedTuple):
    """Amount of work.

    Attributes:
      side: of the matrices.
      products: one after the other in a program, so that its start does not count.
      entries: of the array that goes through memory, in float32.
      passes: how often.
    """

    side: int
    products: int
    entries: int
    passes: int


_SIZES = {"cpu": Size(64, 2, 2**16, 2)}
_LARGE = Size(8192, 20, 2**27, 20)


def check_rates(devices: Sequence[Device]) -> Findings:
    """Rates of all devices of this process against the chip's published ones."""
    size = _SIZES.get(devices[0].platform, _LARGE)
    chip = find_chip(devices[0].device_kind)
    products = [_matrix_rate(device, size) for device in devices]
    wrong = [str(d.id) for d, (_, errors) in zip(devices, products, strict=True) if errors]
    if wrong:
        yield failed(
            "matrix products",
            f"device {', '.join(wrong)} gives wrong ones",
            "a matrix times the identity is the same",
            "leave the host out, or ask for another slice",
        )
    else:
        yield passed("matrix products", f"exact on {len(devices)} devices", "exact")
    rates = [rate for rate, _ in products]
    yield judge("rate of matrix products", rates, devices, chip and chip.flops, "TFLOP/s")
    traffic = [_memory_rate(device, size) for device in devices]
    yield judge("rate of memory", traffic, devices, chip and chip.hbm_bandwidth, "TB/s")


def judge(
    check: str,
    rates: Sequence[float],
    devices: Sequence[Any],
    published: float | None,
    unit: str,
    share: float = SHARE,
) -> Finding:
    """The slowest device's rate against the least that is expected.

    Args:
      check: name.
      rates: of each device.
      devices: those.
      published: the chip's rate; None if it is not known.
      unit: of 1e12 of the rates.
      share: of the published rate that is expected.
    """
    slowest = int(np.argmin(rates))
    shown = f"{rates[slowest] / 1e12:.3g} {unit}"
    if published is None:
        return skipped(check, f"{shown}; that of a {devices[0].device_kind} is not known")
    return at_least(
        check,
        rates[slowest] / 1e12,
        share * published / 1e12,
        f"{{:.3g}} {unit}",
        f"device {devices[slowest].id} is the slowest: end other processes on its host, look at "
        "its temperature, or ask for another slice",
    )


def seconds_of(program: Callable[..., Any], *operands: Any) -> float:
    """Time of one run of a program: the shortest of a few, after one that compiles it."""
    jax.block_until_ready(program(*operands))
    times = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        jax.block_until_ready(program(*operands))
        times.append(time.perf_counter() - start)
    return min(times)


def _matrix_rate(device: Device, size: Size) -> tuple[float, int]:
    """FLOP/s of bfloat16 products, and how many numbers change when multiplied by the identity."""
    with jax.default_device(device):
        x = (jnp.arange(size.side**2) % 251 - 125).reshape(size.side, -1).astype(jnp.bfloat16)
        identity = jnp.eye(size.side, dtype=jnp.bfloat16)

    @jax.jit
    def repeat(x: Array, y: Array) -> Array:
        return jax.lax.fori_loop(0, size.products, lambda _, x: jnp.matmul(x, y), x)

    seconds = seconds_of(repeat, x, identity)
    wrong = int((repeat(x, identity) != x).sum())
    return 2 * size.side**3 * size.products / seconds, wrong


def _memory_rate(device: Device, size: Size) -> float:
    """Bytes a second that are read and written."""
    with jax.default_device(device):
        x = jnp.zeros((size.entries // 1024, 1024), jnp.float32)

    @jax.jit
    def repeat(x: Array) -> Array:
        return jax.lax.fori_loop(0, size.passes, lambda i, x: x + jnp.float32(i), x)

    return 2 * x.nbytes * size.passes / seconds_of(repeat, x)
