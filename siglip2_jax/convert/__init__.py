"""Checkpoints: read any format, write any format."""

from siglip2_jax.convert.checkpoint import Checkpoint, Format, Preprocessing
from siglip2_jax.convert.read import read
from siglip2_jax.convert.source import SourceError
from siglip2_jax.convert.table import ConversionError, Lazy
from siglip2_jax.convert.write import write

__all__ = [
    "Checkpoint",
    "ConversionError",
    "Format",
    "Lazy",
    "Preprocessing",
    "SourceError",
    "read",
    "write",
]
