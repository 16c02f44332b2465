"""Every Pallas kernel as a TPU would run it, over the shapes of all releases and odd ones.

A few shapes run by default, with the slow tests; `SIGLIP2_ALL_SHAPES=1` runs all.
"""

from __future__ import annotations

import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from models.kernels import test_attention, test_layer_norm, test_prototypes, test_vocabulary
from models.kernels.simulator import STRICT, TWO_CORES, no_races

from siglip2_jax.models.config import RELEASES
from siglip2_jax.models.kernels import layer_norm
from siglip2_jax.models.kernels.long_attention import long_attention
from siglip2_jax.models.kernels.short_attention import MOST_TOKENS, short_attention

pytestmark = pytest.mark.slow

BUDGETS = (64, 128, 256, 576, 784, 1024)  # of native resolution
Shape = tuple[int, ...]


def towers() -> set[tuple[int, int, int, bool]]:
    """Tokens, width, heads, and whether some tokens are padding, of all releases' towers."""
    found = set()
    for release in RELEASES:
        vision, text = release.config.vision, release.config.text
        patches = (vision.num_patches,) if vision.num_patches else BUDGETS
        for tower, lengths, padded in (
            (vision, patches, release.config.native_resolution),
            (text, (text.length,), False),
        ):
            found |= {(length, tower.width, tower.num_heads, padded) for length in lengths}
    return found


def attention(tokens: int, width: int, heads: int, padded: bool) -> tuple:
    """Shape of a tower's attention, with as many heads as fill whole groups of lanes."""
    size = width // heads
    return tokens, math.lcm(size, 128) // size, size, padded, None


SHORT = {  # tokens, heads, head size, padded, length of sequences side by side
    (300, 4, 64, True, None),
    (144, 2, 72, True, 36),
    (17, 3, 96, False, None),
}
EVERY_SHORT = SHORT | {
    *(attention(*tower) for tower in towers()),
    (1000, 2, 64, True, None),
    (729, 16, 72, True, None),
    (49, 4, 192, False, None),
}
LONG = {(1100, 1, 72, True)}  # tokens, heads, head size, padded
EVERY_LONG = LONG | {
    (n, 2, size, padded) for size in (64, 72, 96) for n, padded in ((1296, False), (2304, True))
}
NORM: set[Shape] = {(3, 49, 768), (1, 1040, 96)}  # images, tokens, width
EVERY_NORM = NORM | {(2, n, width) for n, width, *_ in towers()} | {(5, 17, 1536), (1, 2304, 1152)}
# Width, entries; and width, prototypes. Their few are in `test_vocabulary` and `test_prototypes`.
VOCABULARY = {(release.config.vision.width, 1300) for release in RELEASES} | {(1152, 1024)}
PROTOTYPES = {(256, 1300), (256, 1024), (384, 777)}

ALL = bool(os.environ.get("SIGLIP2_ALL_SHAPES"))
only_in_all = pytest.mark.skipif(not ALL, reason="needs SIGLIP2_ALL_SHAPES=1")


def cases(few: set, every: set) -> list:
    """Shapes to run."""
    assert few <= every
    return sorted(every if ALL else few, key=repr)


@pytest.mark.parametrize("shape", cases(SHORT, EVERY_SHORT), ids=str)
def test_short_attention(shape):
    tokens, heads, size, padded, length = shape
    inputs = test_attention.operands((2 if tokens <= 256 else 1, tokens, heads, size))
    valid = jnp.arange(tokens)[None] < jnp.asarray([[tokens - 9], [tokens]])[: len(inputs[0])]
    valid = valid if padded else None

    def both(query, key, value, cotangent):
        attend = lambda *x: short_attention(*x, valid, TWO_CORES, length)  # noqa: E731
        out, back = jax.vjp(attend, query, key, value)
        return out, *back(cotangent)

    with no_races():
        results = jax.block_until_ready(jax.jit(both)(*inputs))
    sequences = length or tokens
    rows = [x.reshape(-1, sequences, heads, size) for x in inputs]
    mask = None if valid is None else valid.reshape(-1, sequences)
    for x, y in zip(results, test_attention.expected(*rows, mask), strict=True):
        np.testing.assert_allclose(x, y.reshape(x.shape), atol=2e-6 * max(1, np.abs(y).max()))


@pytest.mark.parametrize("shape", cases(LONG, EVERY_LONG), ids=str)
def test_long_attention(shape):
    """On one core: JAX's kernel keeps running sums in results that nothing reads, in one place."""
    tokens, heads, size, padded = shape
    assert tokens > MOST_TOKENS
    inputs = test_attention.operands((1, tokens, heads, size))
    valid = (jnp.arange(tokens) < tokens - 99)[None] if padded else None

    def both(query, key, value, cotangent):
        out, back = jax.vjp(lambda *x: long_attention(*x, valid, STRICT), query, key, value)
        return out, *back(cotangent)

    with no_races():
        results = jax.block_until_ready(jax.jit(both)(*inputs))
    for x, y in zip(results, test_attention.expected(*inputs, valid), strict=True):
        np.testing.assert_allclose(x, y, atol=3e-5 * max(1, np.abs(y).max()))


def normalize(shape: Shape, x, around, through):
    """The stream's branch and its gradients, by the kernel."""
    layer = test_layer_norm.layer(shape[-1])
    scale, bias = (y[...] for y in (layer.scale, layer.bias))

    def both(x, around, through):
        branch = lambda *x: layer_norm._branch(*x, 1e-6, x[0].dtype, TWO_CORES)  # noqa: E731
        out, back = jax.vjp(branch, x, scale, bias)
        return *out, *back((around, through))

    with no_races():
        return jax.block_until_ready(jax.jit(both)(x, around, through))


def check_layer_norm(shape: Shape) -> None:
    inputs = test_layer_norm.operands(shape)
    wanted = test_layer_norm.expected(test_layer_norm.layer(shape[-1]), *inputs)
    for x, y in zip(normalize(shape, *inputs), wanted, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5 * max(1, np.abs(y).max()))


@pytest.mark.parametrize("shape", cases(NORM, EVERY_NORM), ids=str)
def test_layer_norm_of_a_branch(shape):
    check_layer_norm(shape)


@only_in_all
@pytest.mark.parametrize("shape", sorted(VOCABULARY), ids=str)
def test_softmax_over_a_vocabulary(shape, monkeypatch):
    monkeypatch.setattr(test_vocabulary, "WIDTH", shape[0])
    hidden, *rest = test_vocabulary.operands(shape[1])
    inputs = (hidden / math.sqrt(shape[0]), *rest)
    run = lambda *x: test_vocabulary.run(*x, interpret=STRICT)  # noqa: E731
    with no_races():
        results = jax.block_until_ready(jax.jit(run)(*inputs))
    test_vocabulary.assert_near(results, test_vocabulary.by_hand(*inputs), 4e-6)


@only_in_all
@pytest.mark.parametrize("shape", sorted(PROTOTYPES), ids=str)
def test_match_of_prototypes(shape, monkeypatch):
    monkeypatch.setattr(test_prototypes, "WIDTH", shape[0])
    rows, weights, softmax = test_prototypes.operands(shape[1])
    with no_races():
        run = test_prototypes.compiled(softmax, interpret=STRICT)
        results = jax.block_until_ready(run(rows, weights))
    test_prototypes.assert_near(results, test_prototypes.by_hand(rows, weights, softmax))


def test_a_kernel_that_leaves_rows_unwritten(monkeypatch):
    each = layer_norm._each
    monkeypatch.setattr(layer_norm, "_each", lambda some, shape: each(some, (1, 32, shape[2])))
    with pytest.raises(AssertionError, match="nan"):
        check_layer_norm((1, 40, 16))


def test_a_kernel_that_reads_outside(monkeypatch):
    def beyond(some, shape):
        jax.lax.fori_loop(0, 2, lambda i, _: some(i * 0, pl.ds(i * 16, 16)), None)

    monkeypatch.setattr(layer_norm, "_each", beyond)
    with pytest.raises(Exception, match="[Oo]ut-of-bounds"):
        check_layer_norm((1, 24, 16))


def test_a_kernel_whose_cores_write_one_place():
    def double(x, y):
        y[...] = 2 * x[...]

    def run(x):
        return pl.pallas_call(
            double,
            out_shape=jax.ShapeDtypeStruct((8, 128), jnp.float32),
            grid=(4,),
            in_specs=[pl.BlockSpec((8, 128), lambda i: (i, 0))],
            out_specs=pl.BlockSpec((8, 128), lambda i: (0, 0)),
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
            interpret=TWO_CORES,
        )(x)

    with pytest.raises(Exception, match="RACE DETECTED"), no_races():
        jax.block_until_ready(jax.jit(run)(jnp.ones((32, 128))))
