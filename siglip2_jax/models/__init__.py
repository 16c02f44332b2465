"""The model: both towers, the decoder, and their sizes."""

from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import ModelConfig, TextConfig, Tower, VisionConfig, two_towers

__all__ = [
    "Compute",
    "ModelConfig",
    "TextConfig",
    "Tower",
    "VisionConfig",
    "two_towers",
]
