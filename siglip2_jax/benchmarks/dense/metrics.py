"""Metrics of maps: intersection over union, depth and normal errors. NumPy, float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int


def confusion(
    predicted: Int[np.ndarray, "H W"], truth: Int[np.ndarray, "H W"], num_classes: int
) -> Int[np.ndarray, "K K+1"]:
    """Counts pixels by true class (row) and predicted class (column); a truth below 0 is void.

    The last column counts pixels whose prediction is below 0, no class. Sum it over all images
    before taking `mean_iou`.
    """
    known = truth >= 0
    classes = np.where(predicted < 0, num_classes, predicted)[known]
    shape = num_classes, num_classes + 1
    cells = truth[known].astype(np.int64) * shape[1] + classes
    return np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)


def mean_iou(counts: Int[np.ndarray, "K K+1"]) -> float:
    """Mean over the classes of intersection / union of all pixels, 0 to 1.

    A class that is neither in the truth nor predicted does not count; one that is predicted and
    not in the truth counts as 0. This is mmsegmentation's, and so DINOv2's and DINOv3's.

    Raises:
      ValueError: no pixel was counted.
    """
    hit = counts.diagonal()
    union = counts[:, :-1].sum(0) + counts.sum(1) - hit
    if not union.any():
        raise ValueError("mean IoU got no labelled pixel; every pixel of the truth is void")
    return float((hit[union > 0] / union[union > 0]).mean())


def depth_rmse(predicted: Float[np.ndarray, "H W"], truth: Float[np.ndarray, "H W"]) -> float:
    """Root mean square error of pixels whose true depth is above 0, in its unit; NaN if none."""
    known = truth > 0
    error = predicted[known].astype(np.float64) - truth[known]
    return float(np.sqrt(np.mean(error**2))) if known.any() else float("nan")


def angular_rmse(predicted: Float[np.ndarray, "H W 3"], truth: Float[np.ndarray, "H W 3"]) -> float:
    """Root mean square angle over pixels whose true normal is not zero, in degrees; NaN if none."""
    known = truth.any(axis=-1)
    p, t = predicted[known].astype(np.float64), truth[known].astype(np.float64)
    # Exact for small angles, where the arccosine of a rounded cosine is not.
    angle = np.arctan2(np.linalg.norm(np.cross(p, t), axis=-1), np.sum(p * t, axis=-1))
    return float(np.degrees(np.sqrt(np.mean(angle**2)))) if known.any() else float("nan")


def mean_over_images(values: Sequence[float]) -> float:
    """Mean of the values that are not NaN: images without a label do not count.

    Raises:
      ValueError: all values are NaN.
    """
    errors = np.array(values, np.float64)
    errors = errors[~np.isnan(errors)]
    if not len(errors):
        raise ValueError(f"none of {len(values)} test images has a labelled pixel")
    return float(errors.mean())
