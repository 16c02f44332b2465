"""The layer on patches, its maps and losses, against float64 NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evals.painted import plain_bilinear

from siglip2_jax.evals.dense.heads import ClassHead, DepthHead, Head, NormalsHead
from siglip2_jax.evals.dense.layer import bilinear, patch_scores, whitened
from siglip2_jax.evals.dense.losses import gradient_loss, sig_loss
from siglip2_jax.types import Features


def test_every_image_is_enlarged_from_its_own_grid():
    rng = np.random.default_rng(0)
    old, new = np.array([[3, 5], [6, 2], [1, 1]]), np.array([[11, 9], [12, 13], [4, 7]])
    values = rng.standard_normal((3, 6, 5, 2)).astype(np.float32)
    found = bilinear(jnp.array(values), jnp.array(old), jnp.array(new), (12, 13))
    for x, y, (h, w), (height, width) in zip(values, found, old, new, strict=True):
        expected = plain_bilinear(x[:h, :w].astype(np.float64), height, width)
        np.testing.assert_allclose(y[:height, :width], expected, atol=5e-6)


def random_features(rng, grids, width=4, budget=8):
    count = len(grids)
    tokens = rng.standard_normal((count, budget, width)).astype(np.float32)
    valid = np.arange(budget) < np.prod(grids, axis=1)[:, None]
    pooled = rng.standard_normal((count, width)).astype(np.float32)
    return Features(tokens=tokens, pooled=pooled, image=pooled, valid=valid, grid=np.array(grids))


def test_pooled_vectors_stand_beside_every_token():
    rng = np.random.default_rng(0)
    features = random_features(rng, [(2, 3), (4, 2)])
    weights = {"tokens": (4, 5), "pooled": (4, 5), "bias": (5,)}
    weights = {k: rng.standard_normal(shape).astype(np.float32) for k, shape in weights.items()}
    found = patch_scores(
        jax.tree.map(jnp.array, weights), jax.tree.map(jnp.array, features), (4, 3)
    )
    both = np.vstack([weights["tokens"], weights["pooled"]]).astype(np.float64)
    for i, (h, w) in enumerate(features.grid):
        own = features.tokens[i][: h * w]
        joined = np.hstack([own, np.tile(features.pooled[i], (h * w, 1))])
        expected = (joined @ both + weights["bias"]).reshape(h, w, 5)
        np.testing.assert_allclose(found[i, :h, :w], expected, atol=1e-5)


def test_whitening_knows_the_training_set_only():
    rng = np.random.default_rng(0)
    train, test = random_features(rng, [(2, 3), (4, 2), (1, 1)]), random_features(rng, [(2, 2)])
    for features in (train, test):
        features.tokens[~features.valid] = np.nan
    train.pooled[:, 0] = 3  # constant: shifted, not blown up
    found, other = whitened(train, test)
    rows = found.tokens[train.valid].astype(np.float64)
    np.testing.assert_allclose(rows.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(rows.std(0), 1, atol=1e-6)
    assert (found.tokens[~train.valid] == 0).all() and (other.tokens[~test.valid] == 0).all()
    own = train.tokens[train.valid].astype(np.float64)
    expected = (test.tokens[test.valid] - own.mean(0)) / own.std(0)
    np.testing.assert_allclose(other.tokens[test.valid], expected, atol=1e-5)
    np.testing.assert_allclose(found.pooled[:, 0], 0, atol=1e-6)
    np.testing.assert_allclose(other.pooled[:, 0], test.pooled[:, 0] - 3, atol=1e-6)


def test_bins_are_uniform_and_mixed_linearly():
    head = DepthHead()
    bins = np.linspace(0.001, 10, 256)
    scores = np.random.default_rng(0).standard_normal((3, 256)) * 5
    weights = np.maximum(scores, 0) + 0.1
    expected = (weights * bins).sum(-1) / weights.sum(-1)
    found = head.depth(jnp.array(scores, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=2e-6)
    np.testing.assert_allclose(head.depth(jnp.zeros((1, 256))), [bins.mean()], rtol=1e-6)
    sure = jnp.zeros((1, 256)).at[0, 7].set(1e9)
    np.testing.assert_allclose(head.depth(sure), bins[7:8], rtol=1e-5)


def test_depth_is_mixed_on_a_grid_four_times_finer():
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((1, 2, 3, 256)).astype(np.float32)
    finer = np.maximum(plain_bilinear(scores[0].astype(np.float64), 8, 12), 0) + 0.1
    depth = (finer * np.linspace(0.001, 10, 256)).sum(-1) / finer.sum(-1)
    expected = plain_bilinear(depth, 20, 17)
    grid, size = jnp.array([[2, 3]]), jnp.array([[20, 17]])
    maps = jax.jit(DepthHead().maps, static_argnums=3)
    found = maps(jnp.array(scores), grid, size, (20, 17))
    np.testing.assert_allclose(found[0], expected, atol=2e-5)


def plain_sig_loss(predicted, truth, variance_weight=1.0):
    ratio = np.log(predicted + 0.001)[truth > 0] - np.log(truth + 0.001)[truth > 0]
    return math.sqrt(variance_weight * ratio.var(ddof=1) + 0.15 * ratio.mean() ** 2)


def plain_gradient_loss(predicted, truth):
    total = 0.0
    for scale in (1, 2, 4, 6):
        sums, count = 0.0, 0
        for p, t in zip(predicted[:, ::scale, ::scale], truth[:, ::scale, ::scale], strict=True):
            d = np.log(p + 0.001) - np.log(t + 0.001)
            for (y, x), value in np.ndenumerate(t):
                count += value > 0
                for other in ((y + 2, x), (y, x + 2)):
                    if other[0] < t.shape[0] and other[1] < t.shape[1]:
                        if value > 0 and t[other] > 0:
                            sums += abs(d[y, x] - d[other])
        total += sums / count
    return total


def depths(seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.5, 9, (2, 15, 14))
    return rng.uniform(0.5, 9, truth.shape), np.where(rng.random(truth.shape) < 0.2, 0, truth)


def test_depth_losses_are_those_of_float64():
    predicted, truth = depths()
    p, t = jnp.array(predicted, jnp.float32), jnp.array(truth, jnp.float32)
    np.testing.assert_allclose(sig_loss(p, t), plain_sig_loss(predicted, truth), rtol=2e-6)
    early = plain_sig_loss(predicted, truth, 0.0)
    np.testing.assert_allclose(sig_loss(p, t, 0.0), early, rtol=1e-5)
    slope = plain_gradient_loss(predicted, truth)
    np.testing.assert_allclose(jax.jit(gradient_loss)(p, t), slope, rtol=2e-6)
    loss = jax.jit(DepthHead(warmup_steps=3).loss)
    for step, first in ((2, early), (3, plain_sig_loss(predicted, truth))):
        found = loss(p, t, jnp.int32(step))
        np.testing.assert_allclose(found, first + 0.5 * slope, rtol=5e-6)


def test_depth_losses_do_not_see_a_common_factor_twice():
    """Scaling all depths leaves slopes alone, and moves the other loss by its mean term only."""
    _, truth = depths()
    truth *= 100  # so that the 0.001 before logarithms does not matter
    t = jnp.array(truth, jnp.float32)
    np.testing.assert_allclose(jax.jit(gradient_loss)(2 * t + 1e-9, t), 0, atol=1e-4)
    np.testing.assert_allclose(sig_loss(2 * t + 1e-9, t), math.log(2) * 0.15**0.5, rtol=1e-4)


def test_cross_entropy_is_the_mean_over_labelled_pixels():
    rng = np.random.default_rng(0)
    scores, truth = rng.standard_normal((2, 5, 6, 3)) * 3, rng.integers(-1, 3, (2, 5, 6))
    p = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    losses = [-math.log(p[i, y, x, k]) for (i, y, x), k in np.ndenumerate(truth) if k >= 0]
    head = ClassHead(3)
    found = head.loss(jnp.array(scores, jnp.float32), jnp.array(truth), jnp.int32(0))
    np.testing.assert_allclose(found, np.mean(losses), rtol=1e-6)


def test_normals_are_unit_vectors():
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((1, 2, 3, 3)).astype(np.float32)
    expected = plain_bilinear(scores[0].astype(np.float64), 9, 8)
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    head = NormalsHead()
    found = head.maps(jnp.array(scores), jnp.array([[2, 3]]), jnp.array([[9, 8]]), (9, 8))
    np.testing.assert_allclose(found[0], expected, atol=1e-5)
    truth = np.zeros((1, 9, 8, 3), np.float32)
    truth[0, 2:, :, 1] = 1
    loss = head.loss(found, jnp.array(truth), jnp.int32(0))
    np.testing.assert_allclose(loss, 1 - expected[2:, :, 1].mean(), atol=1e-6)


@pytest.mark.parametrize("head", [ClassHead(3), DepthHead(), NormalsHead()])
@pytest.mark.parametrize("known", [0, 1])
def test_a_batch_without_labels_moves_nothing(head, known):
    """Nor does one labelled pixel give NaN."""
    assert isinstance(head, Head)
    trailing = (3,) if isinstance(head, NormalsHead) else ()
    truth = np.full((2, 8, 8, *trailing), head.void, np.float32)
    truth[0, :known, 0] = 1 / math.sqrt(3) if trailing else 1
    truth = jnp.array(truth, jnp.int32 if isinstance(head, ClassHead) else jnp.float32)
    grid, size = jnp.full((2, 2), 2), jnp.full((2, 2), 8)

    def loss(scores):
        return head.loss(head.maps(scores, grid, size, (8, 8)), truth, jnp.int32(999))

    scores = np.random.default_rng(0).standard_normal((2, 2, 2, head.channels), np.float32)
    value, slope = jax.jit(jax.value_and_grad(loss))(scores)
    assert np.isfinite(value) and np.isfinite(slope).all()
    assert np.asarray(head.known(truth)).sum() == known
    assert (value > 0) == (known > 0) and (np.abs(slope).max() > 0) == (known > 0)
