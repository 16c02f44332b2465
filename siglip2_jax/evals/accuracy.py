"""Accuracies of a classifier from its scores: top 1, top 5, mean per class, one label or several.

Plain NumPy. An image with several labels counts as right if any of them is predicted: the "ReaL"
accuracy of Beyer et al. 2020 (arXiv 2006.07159, section 3.1), as big_vision's
`discriminative_classifier.py` counts. Images without a label do not count at all.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

Ties = Literal["wrong", "first"]
Labels = Int[np.ndarray, " n"] | Bool[np.ndarray, "n C"] | Sequence[Collection[int]]

IMAGES_AT_ONCE = 4096
UNREADABLE = np.iinfo(np.int64).max  # the rank of a label for an image that has no scores


def label_sets(labels: Labels, count: int) -> list[tuple[int, ...]]:
    """The classes of every image, each once and in order.

    Args:
      labels: a class an image, an array with True for an image's classes, or a collection of
        classes an image, which may be empty.
      count: how many classes there are.

    Raises:
      ValueError: a class is not one of 0 to count - 1.
    """
    array = isinstance(labels, np.ndarray)
    if array and labels.ndim == 2:
        labels = [np.flatnonzero(row).tolist() for row in labels]
    elif array:
        labels = labels[:, None].tolist()
    sets = [tuple(sorted({int(x) for x in label_set})) for label_set in labels]
    for i, label_set in enumerate(sets):
        if label_set and not 0 <= label_set[0] <= label_set[-1] < count:
            label = label_set[0] if label_set[0] < 0 else label_set[-1]
            raise ValueError(
                f"image {i} has the label {label}; expected numbers from 0 to {count - 1}, one for "
                "each class"
            )
    return sets


def label_ranks(
    scores: Float[np.ndarray, "n C"], labels: Labels, *, ties: Ties = "wrong"
) -> Int[np.ndarray, " n"]:
    """Rank of each image's best label: the number of other classes that come before it.

    Args:
      scores: of every image with every class; NaN where the image could not be read.
      labels: as for `label_sets`, at least one an image.
      ties: "wrong" puts classes with the same score before the image's own, so that a model that
        gives all classes one score gets 0; "first" puts those with a lower number first, as
        argmax does in published numbers. Two classes of ImageNet share the name "sunglasses" and
        two "missile": with "wrong" all of their images are lost.

    Returns:
      From 0 (found first) to C - 1; `UNREADABLE` in rows with NaN.

    Raises:
      ValueError: an image has no label or an unknown one, or `ties` is unknown.
    """
    if ties not in get_args(Ties):
        raise ValueError(f"ties is {ties!r}; expected 'wrong' or 'first'")
    is_label = np.zeros(scores.shape, bool)
    for i, label_set in enumerate(label_sets(labels, scores.shape[1])):
        if not label_set:
            raise ValueError(f"image {i} has no label; leave such images out")
        is_label[i, list(label_set)] = True
    label_scores = np.where(is_label, scores, -np.inf)
    best = label_scores.max(axis=1, keepdims=True)
    tied = scores == best
    if ties == "first":
        tied &= np.arange(scores.shape[1]) < label_scores.argmax(axis=1)[:, None]
    ranks = ((tied | (scores > best)) & ~is_label).sum(axis=1)
    ranks[np.isnan(scores).any(axis=1)] = UNREADABLE
    return ranks


def classification_metrics(
    scores: Float[np.ndarray, "n C"], labels: Labels, *, ties: Ties = "wrong"
) -> dict[str, float]:
    """Accuracies of taking the class with the highest score.

    Args:
      scores: of every image with every class; rows with NaN count as wrong.
      labels: as for `label_sets`; images without one are left out.
      ties: as for `label_ranks`.

    Returns:
      `top1` and `top5`, the shares of images with one of their classes among the best; and
      `mean_per_class`, where every image has one label: the mean over the classes that occur of
      their own top 1. All from 0 to 1.

    Raises:
      ValueError: a label is no class, or no image has a label.
    """
    sets = label_sets(labels, scores.shape[1])
    indices = [i for i, label_set in enumerate(sets) if label_set]
    sets = [sets[i] for i in indices]
    return _summary(label_ranks(scores[indices], sets, ties=ties), sets)


def embedding_metrics(
    images: Float[np.ndarray, "n E"],
    classes: Float[np.ndarray, "C E"],
    labels: Labels,
    *,
    ties: Ties = "wrong",
) -> dict[str, float]:
    """`classification_metrics` of cosines.

    Scores are made a few thousand images at a time. Classes with the same embedding get the same
    scores to the last bit, whatever the matrix product does at its edges.

    Args:
      images: unit length; NaN where an image could not be read, which counts as wrong.
      classes: unit length.
      labels: as for `classification_metrics`.
      ties: as for `label_ranks`.

    Returns:
      As `classification_metrics`.

    Raises:
      ValueError: a label is no class, or no image has a label.
    """
    sets = label_sets(labels, len(classes))
    indices = np.array([i for i, label_set in enumerate(sets) if label_set], np.int64)
    unique, inverse = np.unique(classes, axis=0, return_inverse=True)
    ranks = [np.zeros(0, np.int64)]
    for start in range(0, len(indices), IMAGES_AT_ONCE):
        rows = indices[start : start + IMAGES_AT_ONCE]
        scores = (images[rows] @ unique.T)[:, inverse.reshape(-1)]
        ranks.append(label_ranks(scores, [sets[i] for i in rows], ties=ties))
    return _summary(np.concatenate(ranks), [sets[i] for i in indices])


def _summary(ranks: Int[np.ndarray, " n"], labels: Sequence[tuple[int, ...]]) -> dict[str, float]:
    if not len(ranks):
        raise ValueError("no image has a label; expected at least one with a label")
    metrics = {f"top{k}": float(np.mean(ranks < k)) for k in (1, 5)}
    if all(len(label_set) == 1 for label_set in labels):
        classes = np.array([label_set[0] for label_set in labels])
        hits, total = np.bincount(classes, weights=ranks < 1), np.bincount(classes)
        metrics["mean_per_class"] = float(np.mean(hits[total > 0] / total[total > 0]))
    return metrics
