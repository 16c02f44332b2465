"""Using a model: embeddings, labels, captions, boxes."""

from siglip2_jax.inference.calibration import Calibration, read_calibration
from siglip2_jax.inference.captioner import Captioner
from siglip2_jax.inference.embedder import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_MAX_NUM_PATCHES,
    Embedder,
)
from siglip2_jax.inference.embedding_file import Embeddings, read_embeddings
from siglip2_jax.inference.generation import GenerationConfig
from siglip2_jax.inference.loading import load, load_captioner
from siglip2_jax.inference.pretrained import SigLIP2
from siglip2_jax.inference.queries import Answer, PixelBox, Query
from siglip2_jax.inference.vlm_tokens import ImageTokens

__all__ = [
    "DEFAULT_BATCH_SIZE",
    "DEFAULT_MAX_NUM_PATCHES",
    "Answer",
    "Calibration",
    "Query",
    "Captioner",
    "Embedder",
    "Embeddings",
    "ImageTokens",
    "PixelBox",
    "SigLIP2",
    "GenerationConfig",
    "load",
    "load_captioner",
    "read_calibration",
    "read_embeddings",
]
