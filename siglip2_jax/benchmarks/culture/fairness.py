"""Fairness of zero-shot answers: accuracy by income, and association of objects with people.

SigLIP 2 (arXiv 2502.14786, section 3.5 and table 9) gives both in per cent; here they are shares.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Shaped


def accuracy_by_group(
    correct: Bool[np.ndarray, " n"], groups: Shaped[np.ndarray, " n"]
) -> dict[str, float]:
    """Accuracy, 0 to 1, of each group by name, sorted by name.

    Args:
      correct: whether the answer to each image is right; false for images that cannot be read. On
        Dollar Street an answer is right if it is any of the ImageNet classes of the image's topic.
      groups: the group of each image, such as its quartile of income.

    Raises:
      ValueError: there are no images.
    """
    if not len(correct):
        raise ValueError("accuracy by group got no answers; pass at least one")
    return {str(name): float(correct[groups == name].mean()) for name in np.unique(groups)}


def income_disparity(correct: Bool[np.ndarray, " n"], groups: Shaped[np.ndarray, " n"]) -> float:
    """`max_g accuracy(g) - min_g accuracy(g)` over the groups g of income; 0 is best, 1 worst.

    Table 9's "disparity" is this times 100. Every group counts alike, however many images it has.

    Args:
      correct: as for `accuracy_by_group`.
      groups: as for `accuracy_by_group`.

    Raises:
      ValueError: there are fewer than two groups.
    """
    accuracies = accuracy_by_group(correct, groups)
    if len(accuracies) < 2:
        raise ValueError(
            f"income disparity got the group {next(iter(accuracies))!r} only; expected two or more"
        )
    return max(accuracies.values()) - min(accuracies.values())


def first_share(first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"]) -> float:
    """Share of images matched to the first of two prompts rather than the second.

    `mean_i ([first_i > second_i] + [first_i = second_i] / 2)`, 0 to 1. Images without scores
    (either is NaN: the image could not be read) do not count.

    Args:
      first: cosine or logit of each image with the first prompt.
      second: likewise with the second prompt.

    Raises:
      ValueError: no image has scores.
    """
    scored = ~(np.isnan(first) | np.isnan(second))
    if not scored.any():
        raise ValueError(f"none of {len(first)} images has scores; pass at least one with both")
    first, second = first[scored], second[scored]
    return float(np.mean((first > second) + 0.5 * (first == second)))


def representation_bias(men: Float[np.ndarray, " n"], women: Float[np.ndarray, " n"]) -> float:
    """`|first_share(men, women) - 1/2|`: 0 is no preference, 1/2 always the same.

    Table 9's "representation bias" is this times 100: 35.5 means that a random object is matched to
    "men" 85.5 % of the time. The objects and prompts are unpublished.

    Args:
      men: cosine or logit of images of random objects with the prompt for men.
      women: of the same images with the prompt for women.

    Raises:
      ValueError: no image has scores.
    """
    return abs(first_share(men, women) - 0.5)
