"""BLEU-4: how many word n-grams of captions occur in those that people wrote."""

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

    The geometric mean of the shares of n-grams found in a reference, times a penalty where the
    captions are shorter than their references: of each image the one nearest in length, the shorter
    of two. Words are `caption_words`. It is not smoothed: 0 where no n-gram of a length is found.

    Args:
      captions: one for each image.
      references: at least one for each image.

    Returns:
      From 0 to 1; published tables show it times 100.

    Raises:
      ValueError: as `cider.check_references`.
    """
    check_references(captions, references)
    found, possible = np.zeros(LONGEST), np.zeros(LONGEST)
    length = nearest = 0
    for caption, own in zip(captions, references, strict=True):
        words = caption_words(caption)
        wanted = [caption_words(text) for text in own]
        length += len(words)
        nearest += min((len(x) for x in wanted), key=lambda n: (abs(n - len(words)), n))
        for n in range(1, LONGEST + 1):
            counts, most = ngram_counts(words, n), Counter()
            for reference in wanted:
                most |= ngram_counts(reference, n)
            found[n - 1] += (counts & most).total()
            possible[n - 1] += counts.total()
    if not found.all():
        return 0.0
    penalty = math.exp(min(0.0, 1 - nearest / length))
    return penalty * float(np.exp(np.mean(np.log(found / possible))))
