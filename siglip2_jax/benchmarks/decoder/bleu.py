"""BLEU-4: share of the word n-grams of captions that occur in captions that people wrote."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from siglip2_jax.benchmarks.decoder.cider import check_references
from siglip2_jax.benchmarks.decoder.words import caption_words, ngram_counts

LONGEST = 4


def bleu_4(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU with n-grams of one to four words, of a whole set (Papineni et al., ACL 2002).

    The geometric mean of the shares of n-grams that occur in a reference, times a penalty if the
    captions are shorter than their references. Of each image the reference nearest in length
    counts, of two equally near ones the shorter. Words are `caption_words`. There is no smoothing:
    the score is 0 where no n-gram of a length occurs in a reference.

    Args:
      captions: one for each image.
      references: at least one for each image.

    Returns:
      From 0 to 1; published tables show it times 100.

    Raises:
      ValueError: as `cider.check_references`.
    """
    check_references(captions, references)
    matches, totals = np.zeros(LONGEST), np.zeros(LONGEST)
    length = nearest = 0
    for caption, texts in zip(captions, references, strict=True):
        words = caption_words(caption)
        reference_words = [caption_words(text) for text in texts]
        length += len(words)
        nearest += min((len(x) for x in reference_words), key=lambda n: (abs(n - len(words)), n))
        for n in range(1, LONGEST + 1):
            counts, max_counts = ngram_counts(words, n), Counter()
            for reference in reference_words:
                max_counts |= ngram_counts(reference, n)
            matches[n - 1] += (counts & max_counts).total()
            totals[n - 1] += counts.total()
    if not matches.all():
        return 0.0
    penalty = math.exp(min(0.0, 1 - nearest / length))
    return penalty * float(np.exp(np.mean(np.log(matches / totals))))
