"""Intersection over union of boxes."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def box_ious(
    boxes1: Float[np.ndarray, "n 4"], boxes2: Float[np.ndarray, "n 4"]
) -> Float[np.ndarray, " n"]:
    """Intersection over union of pairs of boxes.

    Args:
      boxes1: two opposite corners, the lesser coordinates first, in any unit: (ymin, xmin, ymax,
        xmax) or (left, top, right, bottom). NaN means no box.
      boxes2: the same, in the same order and unit.

    Returns:
      float64, from 0 to 1; 0 where a box is missing, has no area, or ends before it begins.
    """
    boxes1, boxes2 = boxes1.astype(np.float64), boxes2.astype(np.float64)
    areas = [np.maximum(x[:, 2:] - x[:, :2], 0).prod(axis=1) for x in (boxes1, boxes2)]
    sides = np.minimum(boxes1[:, 2:], boxes2[:, 2:]) - np.maximum(boxes1[:, :2], boxes2[:, :2])
    common = np.maximum(sides, 0).prod(axis=1)
    union = areas[0] + areas[1] - common
    return np.divide(common, union, out=np.zeros(len(boxes1)), where=union > 0)
