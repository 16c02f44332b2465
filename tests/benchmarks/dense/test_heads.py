"""The layer on patches, its maps and losses, against float64 NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from benchmarks.painted import plain_bilinear

from siglip2_jax.benchmarks.dense.grids import bilinear
from siglip2_jax.benchmarks.dense.heads import ClassHead, DepthHead
from siglip2_jax.benchmarks.dense.layer import Linear, whitened
from siglip2_jax.benchmarks.dense.losses import gradient_loss, sig_loss
from siglip2_jax.benchmarks.dense.metrics import angular_rmse
from siglip2_jax.benchmarks.dense.normals import NormalsHead, UncertainNormalsHead
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
    weights, blocks = jax.tree.map(jnp.array, (weights, [features]))
    found, grid = Linear().scores(weights, blocks, (4, 3))
    np.testing.assert_array_equal(grid, features.grid)
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


def test_depth_is_trained_by_both_losses():
    """With scores of two bins as fine as the labels, in which the depth is known."""
    predicted, truth = depths()
    t, size = jnp.array(truth, jnp.float32), jnp.array([truth.shape[1:]] * 2)
    share = (predicted - 0.5) / 8.5  # of the second bin, of 0.5 and 9 m
    scores = jnp.array(np.stack([1 - share, share], axis=-1), jnp.float32)
    mixed = (np.maximum(scores, 0) + 0.1) @ [0.5, 9] / 1.2
    for weight in (1.0, 10.0):
        head = DepthHead(2, 0.5, 9.0, finer=1, warmup_steps=3, sig_weight=weight)
        loss = jax.jit(head.loss)
        for step, variance in ((2, 0.0), (3, 1.0)):
            expected = weight * plain_sig_loss(mixed, truth, variance)
            expected += 0.5 * plain_gradient_loss(mixed, truth)
            found = loss(scores, size, size, t, jnp.int32(step))
            np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_depth_losses_do_not_see_a_common_factor_twice():
    """Scaling all depths leaves slopes alone, and moves the other loss by its mean term only."""
    _, truth = depths()
    truth *= 100  # so that the 0.001 before logarithms does not matter
    t = jnp.array(truth, jnp.float32)
    np.testing.assert_allclose(jax.jit(gradient_loss)(2 * t + 1e-9, t), 0, atol=1e-4)
    np.testing.assert_allclose(sig_loss(2 * t + 1e-9, t), math.log(2) * 0.15**0.5, rtol=1e-4)


def test_cross_entropy_is_the_mean_over_labelled_pixels():
    rng = np.random.default_rng(0)
    scores, truth = rng.standard_normal((2, 3, 4, 3)) * 9, rng.integers(-1, 3, (2, 5, 6))
    grid, size = np.array([[3, 4], [2, 3]]), np.array([[5, 6], [4, 6]])
    truth[1, 4:] = -1
    losses = []
    for x, t, old, new in zip(scores, truth, grid, size, strict=True):
        p = np.exp(plain_bilinear(x[: old[0], : old[1]], *new))
        p /= p.sum(-1, keepdims=True)
        losses += [
            -math.log(p[*at, k]) for at, k in np.ndenumerate(t[: new[0], : new[1]]) if k >= 0
        ]
    given = map(jnp.array, (scores.astype(np.float32), grid, size, truth))
    found = jax.jit(ClassHead(3).loss)(*given, jnp.int32(0))
    np.testing.assert_allclose(found, np.mean(losses), rtol=2e-6)


@pytest.mark.slow
def test_cross_entropy_has_the_slope_of_a_common_softmax():
    """Image by image or all at once, by comparison or by index: the same up to rounding."""
    rng = np.random.default_rng(1)
    scores = jnp.array(rng.standard_normal((3, 4, 5, 7)) * 5, jnp.float32)
    truth, grid = jnp.array(rng.integers(-1, 7, (3, 20, 17))), jnp.full((3, 2), 4)
    size = jnp.array([[20, 17]] * 3)

    def plain(scores):
        maps = bilinear(scores, grid, size, (20, 17))
        losses = optax.softmax_cross_entropy_with_integer_labels(maps, jnp.maximum(truth, 0))
        return jnp.sum(losses, where=truth >= 0) / (truth >= 0).sum()

    found = jax.grad(lambda x: ClassHead(7).loss(x, grid, size, truth, jnp.int32(0)))(scores)
    np.testing.assert_allclose(found, jax.grad(plain)(scores), atol=2e-8)


def test_normals_are_unit_vectors():
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((1, 2, 3, 4)).astype(np.float32)
    values = plain_bilinear(scores[0].astype(np.float64), 9, 8)
    expected = values[..., :3] / np.linalg.norm(values[..., :3], axis=-1, keepdims=True)
    truth = np.zeros((1, 9, 8, 3), np.float32)
    truth[0, 2:, :, 1] = 1
    cosine, known = expected[2:, :, 1], jnp.array(truth)
    angle, score = np.arccos(cosine), values[2:, :, 3]
    kappa = np.where(score > 0, score, np.exp(score) - 1) + 1.01
    sure = kappa * angle + np.log(1 + np.exp(-math.pi * kappa)) - np.log(kappa**2 + 1)
    for head, losses in ((NormalsHead(), 1 - cosine), (UncertainNormalsHead(), sure)):
        given = jnp.array(scores[..., : head.channels]), jnp.array([[2, 3]]), jnp.array([[9, 8]])
        np.testing.assert_allclose(head.maps(*given, (9, 8))[0], expected, atol=1e-5)
        loss = head.loss(*given, known, jnp.int32(0))
        np.testing.assert_allclose(loss, losses.mean(), rtol=1e-5)


HEADS = [ClassHead(3), DepthHead(), NormalsHead(), UncertainNormalsHead()]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("known", [0, 1])
def test_a_batch_without_labels_moves_nothing(head, known):
    """Nor does one labelled pixel give NaN."""
    trailing = (3,) if isinstance(head, NormalsHead) else ()
    truth = np.full((2, 8, 8, *trailing), head.void, np.float32)
    truth[0, :known, 0] = 1 / math.sqrt(3) if trailing else 1
    truth = jnp.array(truth, jnp.int32 if isinstance(head, ClassHead) else jnp.float32)
    grid, size = jnp.full((2, 2), 2), jnp.full((2, 2), 8)

    def loss(scores):
        return head.loss(scores, grid, size, truth, jnp.int32(999))

    scores = np.random.default_rng(0).standard_normal((2, 2, 2, head.channels), np.float32)
    value, slope = jax.jit(jax.value_and_grad(loss))(scores)
    assert np.isfinite(value) and np.isfinite(slope).all()
    assert np.asarray(head.known(truth)).sum() == known
    assert (value != 0) == (known > 0) and (np.abs(slope).max() > 0) == (known > 0)


def test_nothing_is_worse_than_the_worst_answer():
    rng = np.random.default_rng(0)
    depth = rng.uniform(0, 10, (9, 9)).astype(np.float32)
    worst = DepthHead().worst(depth)
    for other in (0.001, 10, *rng.uniform(0.001, 10, 20)):
        assert (abs(worst - depth) >= abs(other - depth)).all()
    normals = rng.standard_normal((5, 5, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    assert angular_rmse(NormalsHead().worst(normals), normals) == pytest.approx(180)
    assert (ClassHead(3).worst(rng.integers(-1, 3, (4, 4)).astype(np.int32)) == -1).all()
