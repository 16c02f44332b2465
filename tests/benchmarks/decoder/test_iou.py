"""Overlap of boxes against counted pixels, and of boxes that are none."""

import numpy as np

from siglip2_jax.benchmarks.decoder.iou import box_ious

SIDE = 9


def painted(box):
    """The pixels of a box."""
    canvas = np.zeros((SIDE, SIDE), bool)
    top, left, bottom, right = box
    canvas[top:bottom, left:right] = True
    return canvas


def test_boxes_against_counted_pixels():
    """Empty and inverted boxes among them."""
    boxes = np.random.default_rng(0).integers(0, SIDE + 1, (2, 300, 2, 2))
    boxes[:, :200].sort(axis=2)
    boxes = boxes.reshape(2, 300, 4)
    found = box_ious(*boxes.astype(np.float64))
    for one, other, iou in zip(*boxes, found, strict=True):
        a, b = painted(one), painted(other)
        expected = (a & b).sum() / (a | b).sum() if (a & b).any() else 0
        np.testing.assert_allclose(iou, expected, rtol=1e-15)
    assert 0.2 < (found > 0).mean() < 0.9
    swapped = box_ious(*boxes[:, :, [1, 0, 3, 2]].astype(np.float32))
    np.testing.assert_allclose(swapped, found, rtol=1e-15)


def test_degenerate_boxes_overlap_nothing():
    unit, point = [0, 0, 1, 1], [0.5, 0.5, 0.5, 0.5]
    inverted, line, missing = [0.8, 0.8, 0.2, 0.2], [0, 0, 0, 1], [np.nan] * 4
    for other in (point, inverted, line, missing):
        for a, b in ((unit, other), (other, unit), (other, other)):
            assert box_ious(np.array([a], float), np.array([b], float)).tolist() == [0]
    assert box_ious(np.array([unit], float), np.array([unit], float)).tolist() == [1]
    assert box_ious(np.zeros((0, 4)), np.zeros((0, 4))).shape == (0,)
