"""Intersection over union of boxes."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def box_ious(
    one: Float[np.ndarray, "n 4"], other: Float[np.ndarray, "n 4"]
) -> Float[np.ndarray, " n"]:
    """Intersection over union of pairs of boxes.

    Args:
      one: two opposite corners, the lesser coordinates first, in any unit: (ymin, xmin, ymax, xmax)
        or (left, top, right, bottom), as long as both arguments have the same. NaN means no box.
      other: the same.

    Returns:
      float64, from 0 to 1; 0 where a box is missing, has no area, or ends before it begins.
    """
    one, other = one.astype(np.float64), other.astype(np.float64)
    areas = [np.maximum(x[:, 2:] - x[:, :2], 0).prod(axis=1) for x in (one, other)]
    sides = np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2])
    common = np.maximum(sides, 0).prod(axis=1)
    union = areas[0] + areas[1] - common
    return np.divide(common, union, out=np.zeros(len(one)), where=union > 0)
