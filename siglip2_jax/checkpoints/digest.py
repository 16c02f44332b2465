"""Digests of arrays, by which damage to stored values is noticed.

A digest is a sum, modulo 2^32, of a number for each element, made of its bits and its place. So it
is the same on any mesh, whoever adds up, and a change of one element always changes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped, UInt32

_PLACE, _FIRST, _SECOND = 0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35  # odd, so that no bit is lost
_PIECE = 1 << 18  # elements that NumPy takes at a time, which its cache holds


def digest(array: Shaped[np.ndarray, " ..."]) -> int:
    """The digest of an array on the host."""
    flat = np.ascontiguousarray(array).reshape(-1)
    bits, total = flat.view(f"u{array.dtype.itemsize}"), 0
    for start in range(0, len(bits), _PIECE):
        piece = bits[start : start + _PIECE].astype(np.uint32)
        places = np.arange(start, start + len(piece)).astype(np.uint32)
        total += int(_mix(piece, places).sum(dtype=np.uint64))
    return total % 2**32


def digests(arrays: Sequence[Shaped[Array, " ..."]]) -> UInt32[Array, " n"]:
    """The digests of arrays of at most 32 bits an element on any mesh; for `jax.jit`."""
    return jnp.stack([_digest(array) for array in arrays])


@jax.jit  # so that arrays of one shape are traced once
def _digest(array: Shaped[Array, " ..."]) -> UInt32[Array, ""]:
    kind = jnp.dtype(f"u{array.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(array, kind).astype(jnp.uint32)
    places = jnp.zeros(array.shape, jnp.uint32)
    for axis in range(array.ndim):
        stride = math.prod(array.shape[axis + 1 :]) % 2**32
        along = jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
        places += along * jnp.uint32(stride)
    return _mix(bits, places).sum(dtype=jnp.uint32)


def _mix(bits, places):
    """A number for each element, different for any two of the same place; NumPy or JAX."""
    mixed = bits ^ places * np.uint32(_PLACE)
    mixed = (mixed ^ mixed >> np.uint32(16)) * np.uint32(_FIRST)
    mixed = (mixed ^ mixed >> np.uint32(13)) * np.uint32(_SECOND)
    return mixed ^ mixed >> np.uint32(16)
