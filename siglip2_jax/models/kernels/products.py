"""Matrix products in TPU kernels: exact for their operands, and overlapped with vector work."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

Interpret = bool | pltpu.InterpretParams
LANES = 128
ONE_BY_ONE = pltpu.CompilerParams(dimension_semantics=("arbitrary",), vmem_limit_bytes=96 * 2**20)
"""For programs of a one-dimensional grid that hold most of VMEM and run in order."""
# Which dimensions a product sums over: rows of neither, of the second, of both.
PLAIN = (((1,), (0,)), ((), ()))
SECOND = (((1,), (1,)), ((), ()))
FIRST = (((0,), (0,)), ((), ()))


def dot(x: Array, y: Array, dimensions: Any) -> Array:
    """The product of two matrices in float32."""
    # float32 operands are computed as such; without this the chip would round them to bfloat16.
    # Products of bfloat16 are exact, and Mosaic refuses them any precision that JAX's default says.
    levels = jax.lax.Precision
    precision = levels.HIGHEST if x.dtype == jnp.float32 else levels.DEFAULT
    return jax.lax.dot_general(
        x, y, dimensions, precision=precision, preferred_element_type=jnp.float32
    )


def ahead(compute: Any, units: Iterator[Any]) -> Iterator[tuple[Any, Any]]:
    """Units with what `compute` gives, one unit early.

    The compiler keeps the order of a program, so the matrix units are given the next block's
    products before the vector units start on this one's softmax.
    """
    unit = next(units)
    result = compute(unit)
    for following in units:
        next_result = compute(following)
        yield unit, result
        unit, result = following, next_result
    yield unit, result


def row_parts(rows: int, together: int = 512) -> Iterator[slice]:
    """Rows of each product: those `together` whose vector work hides the next one's."""
    for start in range(0, rows, together):
        yield slice(start, min(start + together, rows))


def resident(shape: tuple[int, ...]) -> pl.BlockSpec:
    """An array that all programs of a one-dimensional grid hold whole."""
    return pl.BlockSpec(shape, lambda j: (0,) * len(shape))
