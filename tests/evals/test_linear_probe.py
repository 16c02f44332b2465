"""Logistic regression, against Newton's method in float64."""

import numpy as np
import pytest
from scipy.special import softmax

from siglip2_jax.data.sources import Memory
from siglip2_jax.evals.linear_probe import LinearProbe, fit_logistic, linear_probe
from siglip2_jax.inference.embedder import Embedder


def rows(count, width=5, classes=3, noise=2.0, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(count) % classes)
    means = np.random.default_rng(99).standard_normal((classes, width))
    return (means[y] + rng.standard_normal((count, width)) * noise).astype(np.float32), y


def newton(x, y, classes, l2):
    """The minimum of mean cross-entropy + l2 / 2 |weights|^2, with the whole Hessian."""
    inputs = np.column_stack([x.astype(np.float64), np.ones(len(x))])
    n, width = inputs.shape
    onehot = np.eye(classes)[y]
    penalty = np.repeat([l2] * (width - 1) + [0.0], classes)
    flat = np.zeros(width * classes)
    for _ in range(50):
        p = softmax(inputs @ flat.reshape(width, classes), axis=1)
        gradient = (inputs.T @ (p - onehot) / n).ravel() + penalty * flat
        spread = np.einsum("nk,kj->nkj", p, np.eye(classes)) - p[:, :, None] * p[:, None]
        hessian = np.einsum("ni,nj,nkl->ikjl", inputs, inputs, spread) / n
        hessian = hessian.reshape(flat.size, flat.size) + np.diag(penalty)
        # The biases' common shift is free: least squares leaves it alone.
        flat -= np.linalg.lstsq(hessian, gradient, rcond=1e-12)[0]
    assert np.abs(gradient).max() < 1e-12
    return flat.reshape(width, classes)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("l2", [1e-3, 0.1, 10.0])
def test_the_minimum_is_newtons(classes, l2):
    x, y = rows(80, classes=classes)
    expected = newton(x, y, classes, l2)
    found = fit_logistic(x, y, classes, l2)
    np.testing.assert_allclose(found.weights, expected[:-1], atol=2e-6)
    bias = found.bias - found.bias.mean()
    np.testing.assert_allclose(bias, expected[-1] - expected[-1].mean(), atol=2e-6)
    warm = fit_logistic(x, y, classes, l2, start=fit_logistic(x, y, classes, 1.0))
    np.testing.assert_allclose(warm.weights, expected[:-1], atol=2e-6)


def test_one_penalty_is_one_fit():
    (x, y), (test_x, test_y) = rows(90), rows(60, seed=1)
    found = linear_probe(x, y, test_x, test_y, l2=(0.01,))
    mean, std = x.astype(np.float64).mean(0), x.astype(np.float64).std(0)
    weights = newton((x - mean) / std, y, 3, 0.01)
    answers = np.argmax((test_x - mean) / std @ weights[:-1] + weights[-1], axis=1)
    assert found.top1 == np.mean(answers == test_y) and found.held_out == ()
    assert found.l2 == 0.01 and 0.4 < found.top1 < 1


def test_the_penalty_with_the_best_held_out_part_is_taken():
    """With many useless inputs a large penalty is right; ties go to the larger one."""
    rng = np.random.default_rng(0)
    (x, y), (test_x, test_y) = rows(120, noise=1.2), rows(200, noise=1.2, seed=1)
    x = np.hstack([x, rng.standard_normal((120, 300)).astype(np.float32)])
    test_x = np.hstack([test_x, rng.standard_normal((200, 300)).astype(np.float32)])
    sweep = (1e-6, 1.0, 1e-2)
    found = linear_probe(x, y, test_x, test_y, l2=sweep)
    assert found == linear_probe(x, y, test_x, test_y, l2=sweep)
    best = max(found.held_out)
    assert found.l2 == max(
        l2 for l2, value in zip(sweep, found.held_out, strict=True) if value == best
    )
    assert found.top1 == linear_probe(x, y, test_x, test_y, l2=(found.l2,)).top1
    # The penalties come back in the order in which they were given.
    turned = linear_probe(x, y, test_x, test_y, l2=sweep[::-1])
    assert turned.held_out == found.held_out[::-1] and turned.top1 == found.top1


def test_unreadable_photos():
    (x, y), (test_x, test_y) = rows(60), rows(40, seed=1)
    broken = test_x.copy()
    broken[::2] = np.inf
    half = linear_probe(x, y, broken, test_y, l2=(0.1,)).top1
    assert half == linear_probe(x, y, test_x[1::2], test_y[1::2], l2=(0.1,)).top1 / 2
    bad = np.full((1, x.shape[1]), np.nan, np.float32)
    more = linear_probe(np.vstack([bad, x]), np.append(2, y), test_x, test_y)
    assert more == linear_probe(x, y, test_x, test_y)


def test_what_cannot_be_measured_is_refused():
    x, y = rows(20)
    for wrong in ({"l2": ()}, {"l2": (0.0, 1.0)}, {"held_out": 0.0}, {"held_out": 0.6}):
        with pytest.raises(ValueError, match="expected penalties above 0"):
            linear_probe(x, y, x, y, **wrong)
    with pytest.raises(ValueError, match="1 classes among 20 readable training rows"):
        linear_probe(x, 0 * y, x, y)
    with pytest.raises(ValueError, match="0 classes among 0 readable training rows"):
        linear_probe(x * np.float32("nan"), y, x, y)
    with pytest.raises(ValueError, match="and 0 test rows"):
        linear_probe(x, y, x[:0], y[:0])


class Given(Embedder):
    """Gives pooled features by image."""

    def __init__(self, pooled: dict[bytes, np.ndarray]):
        self.pooled = pooled

    def embed_images(self, images, *, max_num_patches, normalize):
        assert max_num_patches == 49 and not normalize
        return np.stack([self.pooled[image.image] for image in images])


def test_evaluator_reads_sources():
    (x, y), (test_x, test_y) = rows(60), rows(40, seed=1)
    names = [("bee", "ant", "cat")[i] for i in (*y, *test_y)]
    model = Given({bytes([i]): row for i, row in enumerate([*x, *test_x])})
    examples = [
        {"image": bytes([i]), "captions": (), "name": f"{i}", "species": name}
        for i, name in enumerate(names)
    ]
    train, test = Memory(tuple(examples[:60])), Memory(tuple(examples[60:]))
    evaluator = LinearProbe(train=train, test=test, label="species", max_num_patches=49)
    order = np.array([1, 0, 2])  # ant, bee, cat
    expected = linear_probe(x, order[y], test_x, order[test_y])
    assert evaluator(model) == {"top1": expected.top1, "l2": expected.l2}
