"""Fast programs against plain ones on the device, on random numbers: values and gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from siglip2_jax.doctor.check import Finding, at_most

TOLERANCES = {"float32": 1e-5, "bfloat16": 0.02}
"""Largest errors, as a share of the largest number of the plain result, by dtype of the operands.

Products of bfloat16 operands are exact, but weights and gradients are rounded between them."""

Program = Callable[..., Any]


def compare(
    check: str, fast: Program, plain: Program, operands: Sequence[Array], way_out: str
) -> list[Finding]:
    """Findings on the values of a program, and on their gradients by all operands.

    The plain program computes in float32, from the same operands, which are of one dtype.

    Args:
      check: name.
      fast: takes the operands.
      plain: takes them too.
      operands: arrays that both are differentiated by.
      way_out: the setting that avoids the fast program.
    """
    dtype = str(operands[0].dtype)
    values, gradients = (float(x) for x in _errors(fast, plain)(*operands))
    return [
        at_most(f"{check}: {kind}", error, TOLERANCES[dtype], "{:.1e}", way_out)
        for kind, error in (("values", values), ("gradients", gradients))
    ]


def _errors(fast: Program, plain: Program) -> Callable[..., tuple[Array, Array]]:
    @jax.jit
    def errors(*operands: Array) -> tuple[Array, Array]:
        results, pull = jax.vjp(fast, *operands)
        cotangents = jax.tree.map(_noise_like, results)
        with jax.default_matmul_precision("highest"):
            expected, pull_plain = jax.vjp(plain, *(x.astype(jnp.float32) for x in operands))
            widened = jax.tree.map(lambda x, like: x.astype(like.dtype), cotangents, expected)
            expected_gradients = pull_plain(widened)
        return _error(results, expected), _error(pull(cotangents), expected_gradients)

    return errors


def _noise_like(x: Array) -> Array:
    return jax.random.normal(jax.random.key(1), x.shape, jnp.float32).astype(x.dtype)


def _error(results: Any, expected: Any) -> Array:
    """Largest error of any array, in units of the largest number that is expected of it."""

    def one(x: Array, y: Array) -> Array:
        y = y.astype(jnp.float32)
        largest = jnp.maximum(jnp.abs(y).max(), jnp.finfo(jnp.float32).tiny)
        return jnp.abs(x.astype(jnp.float32) - y).max() / largest

    return jnp.stack(jax.tree.leaves(jax.tree.map(one, results, expected))).max()


def noise(seed: int, shape: Sequence[int], dtype: Any, scale: float = 1.0) -> Array:
    """Random numbers of a normal distribution, rounded to a dtype."""
    return (scale * jax.random.normal(jax.random.key(seed), tuple(shape))).astype(dtype)


def avoid(settings: Sequence[str], field: str) -> str:
    """Options that choose XLA's program.

    Args:
      settings: paths of the objects of a config that choose it.
      field: of those.
    """
    return " ".join(f"--set {path}.{field}=xla" for path in settings)
