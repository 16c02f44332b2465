"""Tiny models for tests, of this package and of what extends it; no download, no training.

`TINY` and `TINY_FIXED` are sizes, `random_params` fills any sizes, `tiny_embedder` is a whole model
that embeds images and texts in milliseconds, and `StandInEmbedder` gives the embeddings that a test
chooses.
"""

from siglip2_jax.testing.stand_in import StandInEmbedder
from siglip2_jax.testing.tiny import TINY, TINY_FIXED, random_params, tiny_embedder

__all__ = ["StandInEmbedder", "TINY", "TINY_FIXED", "random_params", "tiny_embedder"]
