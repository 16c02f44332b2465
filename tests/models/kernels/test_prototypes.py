"""Kernels of the loss over prototypes against float64, as a TPU would run them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.kernels.simulator import STRICT, no_races
from scipy.special import log_softmax

from siglip2_jax.models.kernels.prototypes import (
    BLOCK,
    Rows,
    Softmax,
    match_gradients,
    match_sums,
    rows_together,
)

ROWS, WIDTH = 1152, 24  # two products of 512 and one of 128


def operands(prototypes: int, dtype="float32"):
    rng = np.random.default_rng(0)

    def unit(*shape: int, axis: int):
        x = rng.standard_normal(shape)
        return jnp.asarray(x / np.linalg.norm(x, axis=axis, keepdims=True), dtype)

    vectors = [unit(ROWS, WIDTH, axis=1) for _ in range(2)]
    kernels = [unit(WIDTH, prototypes, axis=0) for _ in range(2)]
    center = jnp.asarray(0.1 * rng.standard_normal(prototypes), jnp.float32)
    weights = jnp.asarray(rng.random(ROWS) * (rng.random(ROWS) > 0.3), jnp.float32)
    return Rows(*vectors, *kernels, center), weights, Softmax(0.1, 0.04, prototypes)


def run(rows, weights, softmax, interpret=True):
    """Losses, entropies, both derivatives, added to 0 and 1, and the sum of the targets."""
    padding = -softmax.prototypes % BLOCK
    kernels = (jnp.pad(x, ((0, 0), (0, padding))) for x in rows[2:4])
    rows = Rows(*rows[:2], *kernels, jnp.pad(rows.center, (0, padding)))
    sums = match_sums(rows, softmax, interpret=interpret)
    ones = jnp.ones(rows.student_kernel.shape)
    d_student, d_kernel, targets = match_gradients(
        sums, rows, weights, ones, softmax, interpret=interpret
    )
    count = softmax.prototypes
    return sums.loss, sums.entropy, d_student, d_kernel[:, :count] - 1, targets[:count]


def compiled(softmax, **options):
    return jax.jit(functools.partial(run, softmax=softmax, **options))


def by_hand(rows, weights, softmax):
    doubles = [np.asarray(x.astype(jnp.float32), np.float64) for x in rows]
    student, teacher, student_kernel, teacher_kernel, center = doubles
    weights = np.asarray(weights, np.float64)[:, None]
    logs = log_softmax((teacher @ teacher_kernel - center) / softmax.teacher_temperature, axis=1)
    guesses = log_softmax(student @ student_kernel / softmax.student_temperature, axis=1)
    targets = np.exp(logs)
    slopes = weights * (np.exp(guesses) - targets) / softmax.student_temperature
    return (
        -(targets * guesses).sum(1),
        -(targets * logs).sum(1),
        slopes @ student_kernel.T,
        student.T @ slopes,
        (weights * targets).sum(0),
    )


def assert_near(results, expected, tolerance=3e-6):
    for x, wanted in zip(results, expected, strict=True):
        np.testing.assert_allclose(x, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


@pytest.mark.parametrize("prototypes", [100, 512, 1300])
def test_values_and_gradients(prototypes):
    """One block or several, filled or not."""
    rows, weights, softmax = operands(prototypes)
    assert_near(compiled(softmax)(rows, weights), by_hand(rows, weights, softmax))


@pytest.mark.slow
def test_one_huge_logit():
    """Logits before it vanish and those after it add nothing, whichever block has it."""
    rows, weights, softmax = operands(1300)
    first = jnp.arange(WIDTH) == 0
    student, teacher = (x.at[:, 0].set(1) for x in rows[:2])
    for entry, other in ((3, 700), (700, 1299), (1299, 3)):
        huge = Rows(
            student,
            teacher,
            rows.student_kernel.at[:, entry].set(300 * first),
            rows.teacher_kernel.at[:, other].set(300 * first),
            rows.center,
        )
        assert_near(compiled(softmax)(huge, weights), by_hand(huge, weights, softmax))


def test_bfloat16_rounds_only_the_gradients():
    rows, weights, softmax = operands(1300, "bfloat16")
    results, expected = compiled(softmax)(rows, weights), by_hand(rows, weights, softmax)
    assert {x.dtype for x in results} == {jnp.dtype("float32")}
    assert_near([*results[:2], results[4]], [*expected[:2], expected[4]])
    assert_near(results[2:4], expected[2:4], 4e-3)


def test_no_race_and_nothing_read_before_it_is_written():
    """Copies run beside the program as on a TPU, and memory holds NaN until it is written."""
    rows, weights, softmax = operands(1300)
    with no_races():
        results = jax.block_until_ready(compiled(softmax, interpret=STRICT)(rows, weights))
    assert_near(results, by_hand(rows, weights, softmax))


def test_rows_together():
    """Whole registers, as many as VMEM holds, and the last part nearly full."""
    counts = (1, 128, 129, 2048, 2049, 12544)
    assert [rows_together(n, 256) for n in counts] == [128, 128, 256, 2048, 1152, 1792]
    assert rows_together(4096, 512) == 1024 and rows_together(4096, 10**6) == 128
