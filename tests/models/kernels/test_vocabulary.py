"""Kernels of the softmax over a vocabulary against float64, as a TPU would run them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.kernels.simulator import STRICT, no_races
from scipy.special import logsumexp

from siglip2_jax.models.kernels.vocabulary import (
    BLOCK,
    softmax_gradients,
    softmax_sums,
    tokens_together,
)

TOKENS, WIDTH = 1152, 24  # two products of 512 and one of 128


def operands(vocabulary: int, dtype="float32"):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.standard_normal((TOKENS, WIDTH)), dtype)
    kernel = jnp.asarray(rng.standard_normal((WIDTH, vocabulary)), dtype)
    targets = jnp.asarray(rng.integers(0, vocabulary, TOKENS), jnp.int32)
    weights = jnp.asarray(rng.random(TOKENS) * (rng.random(TOKENS) > 0.3), jnp.float32)
    return hidden, kernel, targets, weights


def run(hidden, kernel, targets, weights, interpret=True):
    """The logarithm of the sum, the right logit, and both derivatives, added to 0 and 1."""
    vocabulary = kernel.shape[1]
    kernel = jnp.pad(kernel, ((0, 0), (0, -vocabulary % BLOCK)))
    sums = softmax_sums(hidden, kernel, targets, vocabulary, keep=True, interpret=interpret)
    ones = jnp.ones(kernel.shape)
    d_hidden, d_kernel = softmax_gradients(
        sums, hidden, kernel, targets, weights, ones, interpret=interpret
    )
    return sums.log_sum, sums.right, d_hidden, d_kernel - 1


def by_hand(hidden, kernel, targets, weights):
    hidden, kernel = (np.asarray(x.astype(jnp.float32), np.float64) for x in (hidden, kernel))
    logits = hidden @ kernel
    log_sum = logsumexp(logits, axis=1)
    right = np.eye(kernel.shape[1])[targets]
    d_logits = np.asarray(weights)[:, None] * (np.exp(logits - log_sum[:, None]) - right)
    d_kernel = np.pad(hidden.T @ d_logits, ((0, 0), (0, -kernel.shape[1] % BLOCK)))
    return log_sum, (logits * right).sum(1), d_logits @ kernel.T, d_kernel


def assert_near(results, expected, tolerance=2e-6):
    for x, wanted in zip(results, expected, strict=True):
        np.testing.assert_allclose(x, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


@pytest.mark.parametrize("vocabulary", [100, 512, 1300])
def test_values_and_gradients(vocabulary):
    """One block or several, filled or not."""
    inputs = operands(vocabulary)
    assert_near(jax.jit(run)(*inputs), by_hand(*inputs))


def test_one_huge_logit():
    """Logits before it vanish and those after it add nothing, whichever block has it."""
    hidden, kernel, targets, weights = operands(1300)
    hidden = hidden.at[:, 0].set(1)
    for entry in (3, 700, 1299):
        inputs = hidden, kernel.at[0, entry].set(3e4), targets, weights
        assert_near(jax.jit(run)(*inputs), by_hand(*inputs))


def test_bfloat16_rounds_only_the_gradients():
    inputs = operands(1300, "bfloat16")
    results, expected = jax.jit(run)(*inputs), by_hand(*inputs)
    assert {x.dtype for x in results} == {jnp.dtype("float32")}
    assert_near(results[:2], expected[:2])
    assert_near(results[2:], expected[2:], 4e-3)


def test_no_race_and_nothing_read_before_it_is_written():
    """Copies run beside the program as on a TPU, and memory holds NaN until it is written."""
    inputs = operands(1300)
    with no_races():
        strict = jax.jit(functools.partial(run, interpret=STRICT))
        results = jax.block_until_ready(strict(*inputs))
    assert_near(results, by_hand(*inputs))


def test_value_alone_keeps_nothing():
    hidden, kernel, targets, _ = operands(BLOCK)
    sums = softmax_sums(hidden, kernel, targets, BLOCK, keep=False, interpret=True)
    assert sums.exponentials is None and sums.tops is None
    np.testing.assert_allclose(sums.log_sum, by_hand(*operands(BLOCK))[0], rtol=2e-6)


def test_tokens_together():
    """Whole registers, as many as VMEM holds."""
    assert [tokens_together(n, 768) for n in (1, 128, 129, 2048, 10**6)] == [
        128,
        128,
        256,
        2048,
        4096,
    ]
    assert tokens_together(4096, 1536) == 2048 and tokens_together(4096, 10**6) == 128
