"""CIDEr-D: agreement of captions with those that people wrote.

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
    caption_tokens = [caption_words(caption) for caption in captions]
    reference_tokens = [[caption_words(text) for text in texts] for texts in references]
    total = sum(
        _agreement(caption_tokens, reference_tokens, length) for length in range(1, LONGEST + 1)
    )
    return np.asarray(10 * total / LONGEST)


def check_references(captions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Refuses lists of different lengths, and images without a reference.

    Raises:
      ValueError: the lengths differ, or an image has no reference.
    """
    if len(captions) != len(references):
        raise ValueError(
            f"there are {len(captions)} captions and references for {len(references)} images; give "
            "one caption for each image"
        )
    index = next((i for i, texts in enumerate(references) if not texts), None)
    if index is not None:
        raise ValueError(f"image {index} has no reference caption; leave out images that have none")


def _agreement(
    captions: list[Words], references: list[list[Words]], length: int
) -> Float[np.ndarray, " n"]:
    """Mean CIDEr-D similarity to an image's references, by n-grams of one length; 0 to 1."""
    counts = [[ngram_counts(words, length) for words in texts] for texts in references]
    images = Counter(ngram for image in counts for ngram in set().union(*image))
    rarity = {ngram: math.log(len(references) / number) for ngram, number in images.items()}
    never = math.log(len(references))
    similarities = []
    for words, texts, text_counts in zip(captions, references, counts, strict=True):
        caption_counts = ngram_counts(words, length)
        norm = _norm(caption_counts, rarity, never)
        similarity = 0.0
        for text, ngrams in zip(texts, text_counts, strict=True):
            product = sum(
                min(caption_counts[ngram], count) * count * rarity[ngram] ** 2
                for ngram, count in ngrams.items()
            )
            if product:
                penalty = math.exp(-((len(words) - len(text)) ** 2) / (2 * SIGMA**2))
                similarity += penalty * product / (norm * _norm(ngrams, rarity, never))
        similarities.append(similarity / len(texts))
    return np.array(similarities)


def _norm(counts: Counter, rarity: dict[tuple[str, ...], float], never: float) -> float:
    return math.sqrt(sum((n * rarity.get(ngram, never)) ** 2 for ngram, n in counts.items()))
