"""Accuracies of a classifier from its scores: top 1, top 5, mean per class, one label or several.

Plain NumPy. An image with several labels counts as right where any of them is found: the "ReaL"
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
    sets = [tuple(sorted({int(x) for x in found})) for found in labels]
    for i, found in enumerate(sets):
        if found and not 0 <= found[0] <= found[-1] < count:
            wrong = found[0] if found[0] < 0 else found[-1]
            raise ValueError(
                f"image {i} has the label {wrong}; expected numbers from 0 to {count - 1}, one for "
                "each class"
            )
    return sets


def label_ranks(
    scores: Float[np.ndarray, "n C"], labels: Labels, *, ties: Ties = "wrong"
) -> Int[np.ndarray, " n"]:
    """Number of classes not an image's own that come before the best of its own.

    Args:
      scores: of every image with every class; NaN where the image could not be read.
      labels: as for `label_sets`, at least one an image.
      ties: "wrong" puts classes with the same score before the image's own, so that a model that
        knows nothing finds nothing; "first" puts those with a lower number first, as argmax does
        in published numbers. Two classes of ImageNet share the name "sunglasses" and two
        "missile": with "wrong" all of their images are lost.

    Returns:
      From 0 (found first) to C - 1; `UNREADABLE` in rows with NaN.

    Raises:
      ValueError: an image has no label, or one that is no class; or `ties` is neither.
    """
    if ties not in get_args(Ties):
        raise ValueError(f"ties is {ties!r}; expected 'wrong' or 'first'")
    own = np.zeros(scores.shape, bool)
    for i, found in enumerate(label_sets(labels, scores.shape[1])):
        if not found:
            raise ValueError(f"image {i} has no label; leave such images out")
        own[i, list(found)] = True
    mine = np.where(own, scores, -np.inf)
    best = mine.max(axis=1, keepdims=True)
    tied = scores == best
    if ties == "first":
        tied &= np.arange(scores.shape[1]) < mine.argmax(axis=1)[:, None]
    ranks = ((tied | (scores > best)) & ~own).sum(axis=1)
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
    used = [i for i, found in enumerate(sets) if found]
    sets = [sets[i] for i in used]
    return _summary(label_ranks(scores[used], sets, ties=ties), sets)


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
    used = np.array([i for i, found in enumerate(sets) if found], np.int64)
    different, place = np.unique(classes, axis=0, return_inverse=True)
    ranks = [np.zeros(0, np.int64)]
    for start in range(0, len(used), IMAGES_AT_ONCE):
        rows = used[start : start + IMAGES_AT_ONCE]
        scores = (images[rows] @ different.T)[:, place.reshape(-1)]
        ranks.append(label_ranks(scores, [sets[i] for i in rows], ties=ties))
    return _summary(np.concatenate(ranks), [sets[i] for i in used])


def _summary(ranks: Int[np.ndarray, " n"], labels: Sequence[tuple[int, ...]]) -> dict[str, float]:
    if not len(ranks):
        raise ValueError("no image has a label; expected at least one that has")
    found = {f"top{k}": float(np.mean(ranks < k)) for k in (1, 5)}
    if all(len(own) == 1 for own in labels):
        only = np.array([own[0] for own in labels])
        right, total = np.bincount(only, weights=ranks < 1), np.bincount(only)
        found["mean_per_class"] = float(np.mean(right[total > 0] / total[total > 0]))
    return found
