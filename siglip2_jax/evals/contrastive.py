"""How well a model picks the partner of each image and text among others of its set."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from siglip2_jax.data.sources import Source
from siglip2_jax.inference import Embedder


def recall_at(scores: Float[np.ndarray, "n m"], partners: np.ndarray, k: int) -> float:
    """The share of rows with a partner among their k highest scores.

    Ties count against the row: a partner's rank is one more than the number of other columns that
    score at least as high.

    Args:
      scores: of every row with every column.
      partners: bool `[n, m]`, true for the columns that belong to a row.
      k: how many columns count.
    """
    best = np.where(partners, scores, -np.inf).max(axis=1, keepdims=True)
    ahead = ((scores >= best) & ~partners).sum(axis=1)
    return float(np.mean(ahead < k))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastiveAccuracy:
    """Recall at 1, 5 and 10 within a held-out set, image to text and text to image.

    Every image has all its captions in the pool; chance is about k over the number of images.

    Attributes:
      source: the set; images that cannot be read count as wrong.
      name: prefix of its numbers.
      every: steps between two measurements.
      count: how many examples, from the first; None means all.
      max_num_patches: token budget at native resolution.
    """

    source: Source
    name: str = "contrastive"
    every: int = 1000
    count: int | None = None
    max_num_patches: int = 256

    def __call__(self, model: Embedder) -> dict[str, float]:
        """`image_to_text@k` and `text_to_image@k`, from 0 to 1."""
        examples = self.source.open()
        count = len(examples) if self.count is None else min(self.count, len(examples))
        chosen = [examples[i] for i in range(count)]
        captions = [caption for x in chosen for caption in x["captions"]]
        owner = np.repeat(np.arange(count), [len(x["captions"]) for x in chosen])
        images = model.embed_images(
            [x["image"] for x in chosen], max_num_patches=self.max_num_patches
        )
        scores = np.nan_to_num(images @ model.embed_texts(captions).T, nan=-2.0)
        partners = np.arange(count)[:, None] == owner
        found = {}
        for k in (1, 5, 10):
            found[f"image_to_text@{k}"] = recall_at(scores, partners, k)
            found[f"text_to_image@{k}"] = recall_at(scores.T, partners.T, k)
        return found
