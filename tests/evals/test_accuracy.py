"""Accuracies against a loop over sorted scores in plain Python."""

import inspect

import numpy as np
import pytest

from siglip2_jax.evals.accuracy import (
    IMAGES_AT_ONCE,
    UNREADABLE,
    classification_metrics,
    embedding_metrics,
    label_ranks,
    label_sets,
)


def place(row, own, ties):
    """Rank of the first of an image's own classes when the others are sorted around it."""
    if any(x != x for x in row):
        return None
    # "wrong": among equals, own classes come last; "first": by number, as argmax takes them.
    order = sorted(range(len(row)), key=lambda j: (-row[j], j in own if ties == "wrong" else 0, j))
    return next(i for i, j in enumerate(order) if j in own)


def plain(scores, labels, ties):
    places = [(place(row, own, ties), own) for row, own in zip(scores, labels, strict=True) if own]
    found = {
        f"top{k}": sum(p is not None and p < k for p, _ in places) / len(places) for k in (1, 5)
    }
    if all(len(own) == 1 for _, own in places):
        by_class = {}
        for p, own in places:
            by_class.setdefault(min(own), []).append(p == 0)
        recalls = [sum(x) / len(x) for x in by_class.values()]
        found["mean_per_class"] = sum(recalls) / len(recalls)
    return found


@pytest.mark.parametrize("ties", ["wrong", "first"])
@pytest.mark.parametrize("levels", [1, 3, 10**6])
@pytest.mark.parametrize("classes", [1, 4, 30])
def test_one_label(classes, levels, ties):
    rng = np.random.default_rng(classes)
    scores = rng.integers(0, levels, (200, classes)).astype(np.float32)  # few levels: many ties
    scores[7] = scores[8, 0] = np.nan
    labels = rng.integers(0, max(1, classes - 1), 200)  # one class never occurs
    found = classification_metrics(scores, labels, ties=ties)
    assert set(found) == {"top1", "top5", "mean_per_class"}
    expected = plain(scores.tolist(), [{int(x)} for x in labels], ties)
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("ties", ["wrong", "first"])
@pytest.mark.parametrize("levels", [4, 10**6])
def test_any_of_several_labels(levels, ties):
    rng = np.random.default_rng(levels)
    scores = rng.integers(0, levels, (300, 12)).astype(np.float64)
    scores[::50] = np.nan
    own = rng.random((300, 12)) < 0.1
    labels = [set(np.flatnonzero(row).tolist()) for row in own]
    assert not all(labels) and max(map(len, labels)) > 1
    expected = plain(scores.tolist(), labels, ties)
    for form in (own, labels, [list(x) + list(x) for x in labels]):
        assert classification_metrics(scores, form, ties=ties) == pytest.approx(expected, abs=1e-12)


def test_argmax_is_what_first_means():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 3, (500, 7)).astype(np.float32)
    labels = rng.integers(0, 7, 500)
    found = classification_metrics(scores, labels, ties="first")
    assert found["top1"] == np.mean(scores.argmax(axis=1) == labels)


def test_mean_per_class_weighs_classes_alike():
    scores = np.eye(3, dtype=np.float32)[[0] * 98 + [2, 2]]
    found = classification_metrics(scores, np.array([0] * 98 + [1, 2]))
    assert found == {"top1": 0.99, "top5": 1, "mean_per_class": pytest.approx(2 / 3)}


def test_blocks_of_images_are_the_whole():
    rng = np.random.default_rng(0)
    count = 2 * IMAGES_AT_ONCE + 3
    # Small integers: products are exact, whatever their order.
    images = rng.integers(-2, 3, (count, 6)).astype(np.float32)
    classes = rng.integers(-2, 3, (9, 6)).astype(np.float32)
    labels = [[int(x)] if x < 9 else [] for x in rng.integers(0, 12, count)]
    images[5] = np.nan
    for ties in ("wrong", "first"):
        found = embedding_metrics(images, classes, labels, ties=ties)
        assert found == classification_metrics(images @ classes.T, labels, ties=ties)


def test_equal_classes_tie_exactly():
    """Also where a matrix product rounds differently at its edges."""
    rng = np.random.default_rng(0)
    classes = rng.standard_normal((1000, 33)).astype(np.float32)
    classes[999] = classes[3]
    images = np.repeat(classes[[3]], 100, axis=0) + 0.01 * rng.random((100, 33), np.float32)
    for label, first in ((3, 1), (999, 0)):
        labels = np.full(100, label)
        assert embedding_metrics(images, classes, labels, ties="first")["top1"] == first
        assert embedding_metrics(images, classes, labels)["top1"] == 0


def test_unreadable_images_are_found_nowhere():
    ranks = label_ranks(np.array([[np.nan, 1.0], [0.0, 1.0]], np.float32), [[1], [0]])
    assert ranks.tolist() == [UNREADABLE, 1]


def test_labels_are_checked():
    scores = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match="image 1 has the label 3; expected numbers from 0 to 2"):
        label_sets([[0], [1, 3]], 3)
    with pytest.raises(ValueError, match="image 0 has the label -1"):
        classification_metrics(scores, np.array([-1, 2]))
    with pytest.raises(ValueError, match="no image has a label"):
        classification_metrics(scores, [[], []])
    with pytest.raises(ValueError, match="no image has a label"):
        embedding_metrics(scores, np.zeros((4, 3), np.float32), np.zeros((2, 4), bool))
    with pytest.raises(ValueError, match="image 1 has no label"):
        label_ranks(scores, [[1], []])
    unchecked = inspect.unwrap(label_ranks)  # the test suite's type checks would refuse it first
    with pytest.raises(ValueError, match="ties is 'last'; expected 'wrong' or 'first'"):
        unchecked(scores, [[1], [0]], ties="last")
