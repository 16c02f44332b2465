"""Cross-entropy of two softmaxes over prototypes on TPU: their logits never leave VMEM.

Both the targets and the guesses are softmaxes of unit vectors' cosines with K prototypes. XLA
writes the [C, K] float32 logits of C rows to HBM and goes through them many times, which takes far
longer than the products: a vector has few entries. Here a first kernel goes through the prototypes
a block at a time and keeps running sums, as in `vocabulary.py`; a second computes both logits again
and multiplies the difference of the two softmaxes, a block at a time, for the gradients. These two
more products are cheaper than writing and reading exponentials.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from siglip2_jax.models.kernels.products import (
    LANES,
    ONE_BY_ONE,
    PLAIN,
    SECOND,
    Interpret,
    ahead,
    dot,
    resident,
    row_parts,
)

BLOCK = 512
"""Prototypes that a program takes; they must be padded to whole blocks."""
_HELD = 2048 * 256  # entries of the vectors; more would outgrow VMEM
_LOWEST = -1e30  # a logit of padding: finite, as it is multiplied by its exponential, 0


class Rows(NamedTuple):
    """Unit vectors of C rows, and the prototypes that both are compared with.

    Attributes:
      student: vectors whose softmax is the guess.
      teacher: vectors whose softmax is the target.
      student_kernel: prototypes, padded with any finite entries to whole blocks of `BLOCK`.
      teacher_kernel: likewise.
      center: taken off the teacher's logits, padded likewise.
    """

    student: Float[Array, "C Z"]
    teacher: Float[Array, "C Z"]
    student_kernel: Float[Array, "Z K"]
    teacher_kernel: Float[Array, "Z K"]
    center: Float[Array, " K"]


class Softmax(NamedTuple):
    """Settings of both softmaxes.

    Attributes:
      student_temperature: divides the student's cosines.
      teacher_temperature: divides the teacher's.
      prototypes: their number without padding.
    """

    student_temperature: float
    teacher_temperature: float
    prototypes: int


class Sums(NamedTuple):
    """Results of the pass over all logits of C rows.

    Attributes:
      loss: cross-entropies, in nats.
      entropy: those of the targets, in nats.
      student: base-2 logarithms of the sums of the exponentials of the student's logits.
      teacher: likewise of the teacher's.
    """

    loss: Float[Array, " C"]
    entropy: Float[Array, " C"]
    student: Float[Array, " C"]
    teacher: Float[Array, " C"]


def rows_together(count: int, width: int) -> int:
    """Number of rows for the kernels to take at a time, for few parts of about the same size.

    Args:
      count: of rows in all.
      width: Z, of their vectors.
    """
    most = max(1, _HELD // width // LANES) * LANES
    return math.ceil(count / math.ceil(count / most) / LANES) * LANES


def match_sums(rows: Rows, softmax: Softmax, *, interpret: Interpret = False) -> Sums:
    """Goes through all logits once.

    Args:
      rows: as many as `rows_together` says.
      softmax: settings.
      interpret: run the kernel step by step on any device; or how to, as in `pallas_call`.
    """
    count = rows.student.shape[0]
    columns = jax.ShapeDtypeStruct((count, LANES), jnp.float32)
    top, total, target_top, target_total, cross, neg_entropy = pl.pallas_call(
        functools.partial(_sums_kernel, softmax=softmax),
        out_shape=[columns] * 6,
        grid=(rows.center.size // BLOCK,),
        in_specs=_specs(rows),
        out_specs=[resident((count, LANES))] * 6,
        compiler_params=ONE_BY_ONE,
        cost_estimate=_cost(rows, 2, 0),
        interpret=interpret,
    )(*_operands(rows))
    target_total = target_total.sum(axis=1)
    student = top[:, 0] + jnp.log2(total.sum(axis=1))
    teacher = target_top[:, 0] + jnp.log2(target_total)
    loss = student - cross.sum(axis=1) / target_total
    entropy = teacher - neg_entropy.sum(axis=1) / target_total
    return Sums(math.log(2) * loss, math.log(2) * entropy, student, teacher)


def match_gradients(
    sums: Sums,
    rows: Rows,
    weights: Float[Array, " C"],
    d_kernel: Float[Array, "Z K"],
    softmax: Softmax,
    *,
    interpret: Interpret = False,
) -> tuple[Float[Array, "C Z"], Float[Array, "Z K"], Float[Array, " K"]]:
    """Derivatives of `weights * loss`, summed over rows, and the sum of `weights * targets`.

    Args:
      sums: of `match_sums`.
      rows: as there, but with prototypes padded with zeros.
      weights: what each row counts.
      d_kernel: what the derivative by the student's prototypes is added to, in place.
      softmax: as there.
      interpret: as there.

    Returns:
      The derivatives by the student's vectors and prototypes and the targets, in float32.
    """
    count, width = rows.student.shape
    block = pl.BlockSpec((width, BLOCK), lambda j: (0, j))
    line = pl.BlockSpec((1, BLOCK), lambda j: (0, j))
    operands = _operands(rows)
    d_student, d_kernel, targets = pl.pallas_call(
        functools.partial(_gradients_kernel, softmax=softmax),
        out_shape=[
            jax.ShapeDtypeStruct((count, width), jnp.float32),
            jax.ShapeDtypeStruct(d_kernel.shape, jnp.float32),
            jax.ShapeDtypeStruct((1, rows.center.size), jnp.float32),
        ],
        grid=(rows.center.size // BLOCK,),
        in_specs=[
            *_specs(rows),
            resident((width, count)),
            *[resident((count, 1))] * 3,
            block,
        ],
        out_specs=[resident((count, width)), block, line],
        input_output_aliases={len(operands) + 4: 1},
        compiler_params=ONE_BY_ONE,
        cost_estimate=_cost(rows, 4, 2),
        interpret=interpret,
    )(
        *operands,
        rows.student.T,
        sums.student[:, None],
        sums.teacher[:, None],
        weights[:, None] / softmax.student_temperature,
        d_kernel,
    )
    return d_student, d_kernel, softmax.student_temperature * targets[0]


def _sums_kernel(*refs: Any, softmax: Softmax) -> None:
    *operands, center, top, total, target_top, target_total, cross, neg_entropy = refs
    first = pl.program_id(0) == 0

    def exponentials(logits: list[Array], rows: slice, top: Any) -> tuple[list[Array], Array]:
        """Exponentials by the largest logit so far, and that of the one before."""
        before = jnp.where(first, _LOWEST, top[rows, :])
        largest = functools.reduce(jnp.maximum, logits).max(axis=1, keepdims=True)
        largest = jnp.maximum(before, largest)
        top[rows, :] = largest
        return [jnp.exp2(part - largest) for part in logits], jnp.exp2(before - largest)

    def add(parts: list[Array], rows: slice, sums: Any, decay: Array) -> None:
        before = jnp.where(first, 0, sums[rows, :]) * decay
        sums[rows, :] = functools.reduce(jnp.add, parts, before)

    products = functools.partial(_products, operands)
    for rows, cosines in ahead(products, row_parts(top.shape[0])):
        guesses, targets = _logits(cosines, center, softmax)
        parts, decay = exponentials(guesses, rows, top)
        add(parts, rows, total, decay)
        parts, decay = exponentials(targets, rows, target_top)
        add(parts, rows, target_total, decay)
        add([x * y for x, y in zip(parts, guesses, strict=True)], rows, cross, decay)
        add([x * y for x, y in zip(parts, targets, strict=True)], rows, neg_entropy, decay)


def _gradients_kernel(*refs: Any, softmax: Softmax) -> None:
    operands, center, refs = refs[:4], refs[4], refs[5:]
    student_columns, student_sums, teacher_sums, weights, d_kernel_before, *results = refs
    d_student, d_kernel, target_sums = results
    student_kernel, first = operands[2], pl.program_id(0) == 0
    products = functools.partial(_products, operands)
    d_kernel[...] = d_kernel_before[...]
    target_sums[...] = jnp.zeros_like(target_sums)
    for rows, cosines in ahead(products, row_parts(d_student.shape[0])):
        weight = weights[rows, :]
        slopes = []
        for i, (guess, target) in enumerate(zip(*_logits(cosines, center, softmax), strict=True)):
            guess = jnp.exp2(guess - student_sums[rows, :]) * weight
            target = jnp.exp2(target - teacher_sums[rows, :]) * weight
            target_sums[:, LANES * i : LANES * (i + 1)] += target.sum(axis=0, keepdims=True)
            slopes.append((guess - target).astype(student_kernel.dtype))
        slope = jnp.concatenate(slopes, axis=1)
        before = jnp.where(first, 0, d_student[rows, :])
        d_student[rows, :] = before + dot(slope, student_kernel[...], SECOND)
        d_kernel[...] += dot(student_columns[:, rows], slope, PLAIN)


def _products(operands: Sequence[Any], rows: slice) -> tuple[Array, Array]:
    """Cosines of some rows with a block of the prototypes."""
    student, teacher, student_kernel, teacher_kernel = operands
    return (
        dot(student[rows, :], student_kernel[...], PLAIN),
        dot(teacher[rows, :], teacher_kernel[...], PLAIN),
    )


def _logits(
    cosines: tuple[Array, Array], center: Any, softmax: Softmax
) -> tuple[list[Array], list[Array]]:
    """Base-2 logits of a block, 128 prototypes each."""
    student, teacher = cosines
    scale, target_scale = (
        math.log2(math.e) / x for x in (softmax.student_temperature, softmax.teacher_temperature)
    )
    lanes = jax.lax.broadcasted_iota(jnp.int32, (student.shape[0], LANES), 1)
    end = softmax.prototypes - pl.program_id(0) * BLOCK
    guesses, targets = [], []
    for at in range(0, BLOCK, LANES):
        part = slice(at, at + LANES)
        guess, target = (
            student[:, part] * scale,
            (teacher[:, part] - center[:, part]) * target_scale,
        )
        if softmax.prototypes % BLOCK:
            guess, target = (jnp.where(lanes < end - at, x, _LOWEST) for x in (guess, target))
        guesses.append(guess)
        targets.append(target)
    return guesses, targets


def _operands(rows: Rows) -> tuple[Array, ...]:
    return *rows[:4], rows.center[None]


def _specs(rows: Rows) -> list[pl.BlockSpec]:
    whole = resident(rows.student.shape)
    block = pl.BlockSpec((rows.student.shape[1], BLOCK), lambda j: (0, j))
    return [whole, whole, block, block, pl.BlockSpec((1, BLOCK), lambda j: (0, j))]


def _cost(rows: Rows, products: int, kernels: int) -> pl.CostEstimate:
    """Estimate for XLA: matrix products of these sizes, and float32 prototypes beside the rows."""
    logits, width = rows.student.shape[0] * rows.center.size, rows.student.shape[1]
    held = sum(x.size * x.dtype.itemsize for x in rows)
    return pl.CostEstimate(
        flops=2 * products * logits * width,
        transcendentals=2 * logits,
        bytes_accessed=held + 4 * kernels * width * rows.center.size,
    )
