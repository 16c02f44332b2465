"""Kernels of losses over many classes against XLA's programs: vocabulary and prototypes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from siglip2_jax.doctor.check import Finding, skipped
from siglip2_jax.doctor.compare import avoid, compare, noise
from siglip2_jax.doctor.kernels import XLA
from siglip2_jax.doctor.shapes import Prototypes, Vocabulary
from siglip2_jax.models.siglip2 import normalize
from siglip2_jax.objectives.prototypes import distillation_loss
from siglip2_jax.objectives.vocabulary import vocabulary_loss
from siglip2_jax.sharding import platform

_SMALL = 600  # classes, where kernels are interpreted


def check_vocabulary(shape: Vocabulary, settings: Sequence[str]) -> list[Finding]:
    """The loss over the vocabulary."""
    name = f"vocabulary loss, {shape}"
    impl = _choose(shape.impl, shape.dtype)
    if impl == "xla":
        return [skipped(name, XLA)]
    if platform() == "cpu":
        shape = dataclasses.replace(
            shape,
            tokens=min(shape.tokens, 64),
            width=min(shape.width, 64),
            entries=min(shape.entries, _SMALL),
        )
    hidden = noise(0, (shape.tokens, shape.width), jnp.float32).astype(shape.dtype)
    kernel = noise(1, (shape.width, shape.entries), shape.dtype, shape.width**-0.5)
    targets = jax.random.randint(jax.random.key(2), (shape.tokens,), 0, shape.entries)
    weights = (jnp.arange(shape.tokens) % 3 > 0) / shape.tokens

    def program(kind, dtype: str):
        def run(hidden: Array, kernel: Array) -> Array:
            states, entries = hidden.astype(jnp.float32), kernel.astype(jnp.float32)
            return vocabulary_loss(
                states, entries, targets, weights, chunk=shape.tokens, dtype=dtype, impl=kind
            )[0]

        return run

    fast, plain = program(impl, shape.dtype), program("xla", "float32")
    return compare(
        f"{name}: kernel", fast, plain, (hidden, kernel), avoid(settings, "implementation")
    )


def check_prototypes(shape: Prototypes, settings: Sequence[str]) -> list[Finding]:
    """The loss over prototypes."""
    name = f"prototypes, {shape}"
    impl = _choose(shape.impl, shape.dtype)
    if impl == "xla":
        return [skipped(name, XLA)]
    if platform() == "cpu":
        shape = dataclasses.replace(
            shape, rows=min(shape.rows, 16), prototypes=min(shape.prototypes, _SMALL)
        )
    rows, width, count = shape.rows, shape.width, shape.prototypes

    def directions(seed: int, count: int) -> Array:
        return normalize(noise(seed, (count, width), jnp.float32))

    student = directions(0, rows).astype(shape.dtype)
    teacher = directions(1, rows).astype(shape.dtype).astype(jnp.float32)
    kernel = directions(2, count).T.astype(shape.dtype)
    teacher_kernel = directions(3, count).T.astype(shape.dtype)
    center = noise(4, (count,), jnp.float32, 0.01)
    weights = jnp.full((rows, 1), 1 / rows)

    def program(kind, dtype: str):
        def run(student: Array, kernel: Array) -> Array:
            return distillation_loss(
                student.astype(jnp.float32)[:, None],
                teacher,
                kernel.astype(dtype),
                teacher_kernel.astype(dtype),
                center,
                weights,
                student_temperature=shape.temperatures[0],
                teacher_temperature=shape.temperatures[1],
                chunk=rows,
                impl=kind,
            ).loss

        return run

    fast, plain = program(impl, shape.dtype), program("xla", "float32")
    return compare(
        f"{name}: kernel", fast, plain, (student, kernel), avoid(settings, "implementation")
    )


def _choose(impl: str, dtype: str):
    """The program that runs where training says "auto"; on a CPU the kernel, interpreted."""
    if impl != "auto" or platform() == "cpu":
        return "pallas" if impl == "auto" else impl
    return "pallas" if platform() == "tpu" and dtype == "bfloat16" else "xla"
