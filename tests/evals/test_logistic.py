"""Logistic regression in parts on devices, against Newton's method and L-BFGS in float64."""

import jax
import numpy as np
import pytest
from evals.logistic_in_float64 import examples, in_float64, newton, objective

from siglip2_jax.evals import logistic
from siglip2_jax.evals.logistic import Logistic, Rows, minimise
from siglip2_jax.sharding import make_mesh


def check(found: Logistic, best: np.ndarray, x, y, l2):
    """The objective within float32 of its minimum, and all answers the same."""
    classes = best.shape[1]
    whole = np.vstack([np.asarray(found.weights), np.asarray(found.bias)])
    assert whole.dtype == np.float32
    value, lowest = (objective(w.ravel(), x, y, classes, l2)[0] for w in (whole, best))
    assert -1e-12 <= value - lowest < 3e-6
    scores = x.astype(np.float64) @ best[:-1] + best[-1]
    clear = np.diff(np.sort(scores, axis=1)[:, -2:])[:, 0] > 1e-2
    assert clear.mean() > 0.9
    answers = (x @ np.asarray(found.weights) + np.asarray(found.bias)).argmax(1)
    np.testing.assert_array_equal(answers[clear], scores.argmax(1)[clear])


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("l2", [1e-3, 0.1, 10.0])
def test_the_minimum_is_newtons(classes, l2):
    x, y = examples(80, classes=classes)
    expected = newton(x, y, classes, l2)
    np.testing.assert_allclose(
        in_float64(x, y, classes, l2)[:-1], expected[:-1], atol=2e-6
    )  # the other oracle
    rows = Rows.place(x, y, classes)
    found = rows.fit(classes, l2)
    np.testing.assert_allclose(found.weights, expected[:-1], atol=5e-4)
    bias = np.asarray(found.bias)
    np.testing.assert_allclose(bias - bias.mean(), expected[-1] - expected[-1].mean(), atol=5e-4)
    check(found, expected, x, y, l2)
    check(rows.fit(classes, l2, start=rows.fit(classes, 1.0)), expected, x, y, l2)


@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-5])
def test_many_classes_in_parts(l2, monkeypatch):
    """Equal to a fit on all scores at once in float64."""
    monkeypatch.setattr(logistic, "SCORES", 20 * 64)
    x, y = examples(1500, width=20, classes=20, noise=3.0)
    rows = Rows.place(x, y, 20)
    devices = jax.local_device_count()
    assert rows.x.shape == (-(-1500 // (64 * devices)), 64 * devices, 20)
    found = rows.fit(20, l2)
    check(found, in_float64(x, y, 20, l2), x, y, l2)
    answers = (x @ np.asarray(found.weights) + np.asarray(found.bias)).argmax(1)
    assert np.mean(rows.predict(found) == answers) > 0.998  # rounding decides near ties


@pytest.mark.slow
def test_examples_that_do_not_count_might_as_well_not_be_there():
    x, y = examples(90)
    used = np.arange(90) % 3 != 0
    found = Rows.place(x, y, 3).fit(3, 0.01, used=used * 1.0)
    alone = Rows.place(x[used], y[used], 3).fit(3, 0.01)
    np.testing.assert_allclose(found.weights, alone.weights, atol=1e-4)
    check(found, newton(x[used], y[used], 3, 0.01), x[used], y[used], 0.01)


def test_inputs_are_whitened_in_float64():
    rng = np.random.default_rng(0)
    x = (1e4 + rng.standard_normal((50, 3))).astype(np.float32)
    mean, std = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    placed = np.asarray(Rows.place(x, np.arange(50) % 2, 2, mean=mean, std=std).x)
    expected = ((x.astype(np.float64) - mean) / std).astype(np.float32)
    np.testing.assert_array_equal(placed.reshape(-1, 3)[:50], expected)
    assert not placed.reshape(-1, 3)[50:].any()


def test_devices_share_the_examples_whatever_mesh_is_in_force():
    x, y = examples(101, classes=3)
    one = Rows.place(x, y, 3, devices=jax.devices()[:1])
    with jax.set_mesh(make_mesh()):  # as in a training run
        rows = Rows.place(x, y, 3)
        found, answers = rows.fit(3, 0.01), None
        answers = rows.predict(found)
    assert len(rows.x.sharding.device_set) == len(jax.devices()) == 8
    assert {x.data.shape for x in rows.x.addressable_shards} == {(1, 13, 5)}
    alone = one.fit(3, 0.01)
    np.testing.assert_allclose(found.weights, alone.weights, atol=1e-4)
    np.testing.assert_array_equal(answers, one.predict(alone))


def _abstract(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, np.float32)


def test_memory_at_the_size_of_imagenet():
    """1,281,167 examples of 768 features and 1,000 classes on one device, from the compiler."""
    classes, width = 1000, 768
    size = logistic.SCORES // classes
    parts = -(-1_281_167 // size)
    inputs = (
        Logistic(_abstract(width, classes), _abstract(classes)),
        _abstract(parts, size, width),
        jax.ShapeDtypeStruct((parts, size), np.int32),
        _abstract(parts, size),
        _abstract(),
    )
    memory = minimise.lower(*inputs).compile().memory_analysis()
    features, scores = 4 * parts * size * width, 4 * parts * size * classes
    assert 3.9e9 < features <= memory.argument_size_in_bytes < features + 20e6
    # L-BFGS remembers 20 steps and gradients, 3 MB each; a part's scores are 34 MB.
    assert memory.temp_size_in_bytes < 600e6 < scores / 8
