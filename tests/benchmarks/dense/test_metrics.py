"""Numbers that say how good maps are, against loops over pixels."""

import math

import numpy as np
import pytest

from siglip2_jax.benchmarks.dense.metrics import (
    angular_rmse,
    confusion,
    depth_rmse,
    mean_iou,
    mean_over_images,
)


def plain_iou(predicted, truth, classes):
    """Mean IoU of lists of maps, pixel by pixel."""
    found = []
    for k in range(classes):
        both = either = 0
        for p, t in zip(np.ravel(predicted), np.ravel(truth), strict=True):
            if t >= 0:
                both += p == k and t == k
                either += p == k or t == k
        if either:
            found.append(both / either)
    return sum(found) / len(found)


def test_mean_iou_is_that_of_a_loop():
    rng = np.random.default_rng(0)
    truth = rng.integers(-1, 4, (3, 9, 7))  # class 4 is never there but predicted, 5 and 6 never
    predicted = np.where(rng.random(truth.shape) < 0.6, np.maximum(truth, 0), 4)
    predicted[2, :4] = -1  # no class
    total = sum(confusion(p, t, 7) for p, t in zip(predicted, truth, strict=True))
    assert total.sum() == (truth >= 0).sum()
    assert mean_iou(total) == pytest.approx(plain_iou(predicted, truth, 7), abs=1e-15)


def test_mean_iou_of_one_class_and_of_none():
    ones = np.zeros((2, 3), np.int32)
    assert mean_iou(confusion(ones, ones, 1)) == 1
    with pytest.raises(ValueError, match="no labelled pixel"):
        mean_iou(confusion(ones, ones - 1, 1))


def test_depth_error_counts_known_pixels_only():
    truth, predicted = np.array([[0.0, 1.0], [4.0, 0.0]]), np.array([[9.0, 2.0], [1.0, 9.0]])
    assert depth_rmse(predicted, truth) == pytest.approx(math.sqrt((1 + 9) / 2), abs=1e-15)
    assert math.isnan(depth_rmse(predicted, 0 * truth))
    assert mean_over_images([1.0, math.nan, 3.0]) == 2
    with pytest.raises(ValueError, match="none of 1 test images"):
        mean_over_images([math.nan])


def test_angular_error_is_in_degrees():
    angles = np.radians([[1e-6, 90.0], [180.0, 45.0]])
    predicted = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=-1)
    truth = np.zeros((2, 2, 3))
    truth[..., 0] = 1
    expected = math.sqrt((1e-12 + 90**2 + 180**2 + 45**2) / 4)
    assert angular_rmse(predicted, truth) == pytest.approx(expected, rel=1e-14)
    truth[0, 1] = truth[1] = 0
    assert angular_rmse(predicted, truth) == pytest.approx(1e-6, rel=1e-9)
    assert math.isnan(angular_rmse(predicted, 0 * truth))
