"""The linear probe's protocol, against fits in float64."""

import numpy as np
import pytest
from evals.logistic_in_float64 import examples, in_float64, newton

from siglip2_jax.data.sources import Memory
from siglip2_jax.evals.linear_probe import SWEEP, LinearProbe, linear_probe
from siglip2_jax.inference.embedder import Embedder


def test_one_penalty_is_one_fit():
    (x, y), (test_x, test_y) = examples(90), examples(60, seed=1)
    found = linear_probe(x, y, test_x, test_y, l2=(0.01,))
    mean, std = x.astype(np.float64).mean(0), x.astype(np.float64).std(0)
    weights = newton((x - mean) / std, y, 3, 0.01)
    answers = np.argmax((test_x - mean) / std @ weights[:-1] + weights[-1], axis=1)
    assert found.top1 == np.mean(answers == test_y) and found.held_out == ()
    assert found.l2 == 0.01 and 0.4 < found.top1 < 1


@pytest.mark.slow
def test_the_penalty_with_the_best_held_out_part_is_taken():
    """With many useless inputs a large penalty is right; ties go to the larger one."""
    rng = np.random.default_rng(0)
    (x, y), (test_x, test_y) = examples(120, noise=1.2), examples(200, noise=1.2, seed=1)
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


def test_the_sweep_is_that_of_float64():
    """All 7 penalties: held-out accuracies and the answer, but for an example near a border."""
    (x, y), (test_x, test_y) = examples(400, classes=4), examples(200, classes=4, seed=1)
    found = linear_probe(x, y, test_x, test_y)
    held = np.zeros(400, bool)
    order = np.random.default_rng(0).permutation(400)
    held[sorted(order, key=lambda i: y[i])[4::5]] = True  # stable: within a class in random order
    mean, std = x.astype(np.float64).mean(0), x.astype(np.float64).std(0)
    x, test_x = (x - mean) / std, (test_x - mean) / std
    accuracies = []
    for l2 in SWEEP:
        best = in_float64(x[~held], y[~held], 4, l2)
        accuracies.append(np.mean((x[held] @ best[:-1] + best[-1]).argmax(1) == y[held]))
    np.testing.assert_allclose(found.held_out, accuracies, rtol=0, atol=1 / held.sum())
    assert len(SWEEP) == 7 and found.l2 == SWEEP[int(np.argmax(found.held_out))]
    best = in_float64(x, y, 4, found.l2)
    top1 = np.mean((test_x @ best[:-1] + best[-1]).argmax(1) == test_y)
    assert abs(found.top1 - top1) <= 1 / 200


def test_unreadable_images():
    (x, y), (test_x, test_y) = examples(60), examples(40, seed=1)
    broken = test_x.copy()
    broken[::2] = np.inf
    half = linear_probe(x, y, broken, test_y, l2=(0.1,)).top1
    assert half == linear_probe(x, y, test_x[1::2], test_y[1::2], l2=(0.1,)).top1 / 2
    bad = np.full((1, x.shape[1]), np.nan, np.float32)
    more = linear_probe(np.vstack([bad, x]), np.append(2, y), test_x, test_y)
    assert more == linear_probe(x, y, test_x, test_y)


def test_what_cannot_be_measured_is_refused():
    x, y = examples(20)
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
    (x, y), (test_x, test_y) = examples(60), examples(40, seed=1)
    names = [("bee", "ant", "cat")[i] for i in (*y, *test_y)]
    model = Given({bytes([i]): row for i, row in enumerate([*x, *test_x])})
    listed = [
        {"image": bytes([i]), "captions": (), "name": f"{i}", "species": name}
        for i, name in enumerate(names)
    ]
    train, test = Memory(tuple(listed[:60])), Memory(tuple(listed[60:]))
    evaluator = LinearProbe(train=train, test=test, label="species", max_num_patches=49)
    order = np.array([1, 0, 2])  # ant, bee, cat
    expected = linear_probe(x, order[y], test_x, order[test_y])
    assert evaluator(model) == {"top1": expected.top1, "l2": expected.l2}
