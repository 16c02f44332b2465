"""Captions, boxes for phrases and phrases for boxes, by the decoder that a run has trained."""

from siglip2_jax.captioning.asks import Answer, Ask, PixelBox
from siglip2_jax.captioning.captioner import Captioner
from siglip2_jax.captioning.load import load_captioner
from siglip2_jax.captioning.writing import Writing

__all__ = ["Answer", "Ask", "Captioner", "PixelBox", "Writing", "load_captioner"]
