"""CIDEr-D by its formulas, with NumPy."""

import numpy as np


def plain_cider(captions, references):
    """The formulas of arXiv 1411.5726, section 6, on dense vectors over all n-grams."""
    scores = np.zeros(len(captions))
    for n in range(1, 5):

        def ngrams(text, n=n):
            words = text.split()
            return [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]

        texts = [*captions, *(text for own in references for text in own)]
        vocabulary = sorted({ngram for text in texts for ngram in ngrams(text)})
        if not vocabulary:
            continue

        def counts(text, vocabulary=vocabulary, ngrams=ngrams):
            return np.array([ngrams(text).count(ngram) for ngram in vocabulary], float)

        wanted = [np.array([counts(text) for text in own]) for own in references]
        seen = sum((own.sum(0) > 0).astype(float) for own in wanted)
        rarity = np.log(len(references)) - np.log(np.maximum(seen, 1))
        for i, (caption, own) in enumerate(zip(captions, wanted, strict=True)):
            mine = counts(caption) * rarity
            for text, row in zip(references[i], own * rarity, strict=True):
                length = np.linalg.norm(mine) * np.linalg.norm(row)
                gap = len(caption.split()) - len(text.split())
                if length:
                    cosine = np.minimum(mine, row) @ row / length
                    scores[i] += 10 / 4 / len(own) * np.exp(-(gap**2) / 72) * cosine
    return scores
