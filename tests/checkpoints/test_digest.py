"""Digests of arrays: of every element and its place, and the same wherever they are computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from siglip2_jax.checkpoints.digest import digest, digests

SHAPES = [(), (1,), (3, 5), (2, 4, 6), (8, 1 << 16)]


def plainly(array: np.ndarray) -> int:
    """The sum, in Python's integers."""
    total = 0
    for place, x in enumerate(array.reshape(-1).view(f"u{array.dtype.itemsize}").tolist()):
        mixed = x ^ place * 0x9E3779B1 % 2**32
        mixed = (mixed ^ mixed >> 16) * 0x85EBCA6B % 2**32
        mixed = (mixed ^ mixed >> 13) * 0xC2B2AE35 % 2**32
        total += mixed ^ mixed >> 16
    return total % 2**32


def made(shape, dtype, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype)


def test_host_and_devices_agree():
    """On one device, and split on four; in every dtype that a state has."""
    arrays = [made(shape, np.float32) for shape in SHAPES]
    arrays += [made((4, 6), dtype) for dtype in (jnp.bfloat16, np.int32)]
    expected = [plainly(x) for x in arrays]
    assert [digest(x) for x in arrays] == expected
    assert jax.jit(digests)([jnp.asarray(x) for x in arrays]).tolist() == expected
    mesh = Mesh(np.array(jax.devices()[:4]), ("fsdp",))
    axes = [next((i for i, n in enumerate(x.shape) if n % 4 == 0), None) for x in arrays]
    specs = [PartitionSpec(*[None] * i, "fsdp") if i is not None else PartitionSpec() for i in axes]
    split = [
        jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(arrays, specs, strict=True)
    ]
    assert sum(not x.is_fully_replicated for x in split) >= 3
    assert jax.jit(digests)(split).tolist() == expected


@pytest.mark.parametrize("place", [0, 17, 39])
def test_every_bit_counts(place):
    array = made((5, 8), np.float32)
    bits = array.view(np.uint32).reshape(-1)
    seen = {digest(array)}
    for bit in range(32):
        bits[place] ^= np.uint32(1 << bit)
        seen.add(digest(array))
        bits[place] ^= np.uint32(1 << bit)
    assert len(seen) == 33


def test_places_count():
    """Two elements, or two rows, that change places are noticed."""
    array = made((6, 4), np.float32)
    assert len({digest(x) for x in (array, array[::-1], array[:, ::-1], array.T)}) == 4
