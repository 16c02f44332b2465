"""CIDEr-D: how well captions agree with those that people wrote.

Vedantam et al., "CIDEr: Consensus-based Image Description Evaluation" (arXiv 1411.5726), sections
3 and 6: n-grams of one to four words, weighted by how rare they are among the references, compared
by cosine; in CIDEr-D counts are clipped to the reference's, and captions of another length are
worth less. Words are `caption_words`. COCO's evaluation code computes the same.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from siglip2_jax.benchmarks.decoder.words import caption_words, ngram_counts

LONGEST = 4
SIGMA = 6.0

Words = list[str]


def cider_d(
    captions: Sequence[str], references: Sequence[Sequence[str]]
) -> Float[np.ndarray, " n"]:
    """The score of each image's caption; their mean is the number of a set.

    Published tables show it times 100: 1.3 here is 130 there. Rarity is counted over the given
    references, so that scores of different sets cannot be compared, and where all images have the
    same references they are all 0.

    Args:
      captions: one for each image; an empty one scores 0.
      references: at least one for each image.

    Returns:
      float64, from 0 to 10.

    Raises:
      ValueError: there are fewer than two images, an image has no reference, or the two lists
        differ in length.
    """
    check_references(captions, references)
    if len(captions) < 2:
        raise ValueError(
            f"CIDEr-D got {len(captions)} image; it weighs words by how few images they occur in, "
            "which needs at least 2"
        )
    said = [caption_words(caption) for caption in captions]
    wanted = [[caption_words(text) for text in own] for own in references]
    total = sum(_agreement(said, wanted, length) for length in range(1, LONGEST + 1))
    return np.asarray(10 * total / LONGEST)


def check_references(captions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Refuses lists of different lengths, and images without a reference.

    Raises:
      ValueError: they are such.
    """
    if len(captions) != len(references):
        raise ValueError(
            f"there are {len(captions)} captions and references for {len(references)} images; give "
            "one caption for each image"
        )
    without = next((i for i, own in enumerate(references) if not own), None)
    if without is not None:
        raise ValueError(
            f"image {without} has no reference caption; leave out images that have none"
        )


def _agreement(
    said: list[Words], wanted: list[list[Words]], length: int
) -> Float[np.ndarray, " n"]:
    """Mean CIDEr-D similarity to an image's references, by n-grams of one length; 0 to 1."""
    counts = [[ngram_counts(words, length) for words in own] for own in wanted]
    images = Counter(ngram for own in counts for ngram in set().union(*own))
    rarity = {ngram: math.log(len(wanted) / number) for ngram, number in images.items()}
    never = math.log(len(wanted))
    found = []
    for words, own, own_counts in zip(said, wanted, counts, strict=True):
        mine = ngram_counts(words, length)
        norm = _norm(mine, rarity, never)
        similarity = 0.0
        for reference, theirs in zip(own, own_counts, strict=True):
            both = sum(
                min(mine[ngram], count) * count * rarity[ngram] ** 2
                for ngram, count in theirs.items()
            )
            if both:
                other = math.exp(-((len(words) - len(reference)) ** 2) / (2 * SIGMA**2))
                similarity += other * both / (norm * _norm(theirs, rarity, never))
        found.append(similarity / len(own))
    return np.array(found)


def _norm(counts: Counter, rarity: dict[tuple[str, ...], float], never: float) -> float:
    return math.sqrt(sum((n * rarity.get(ngram, never)) ** 2 for ngram, n in counts.items()))
