"""Checkpoints: read any format, write any format."""

from siglip2_jax.checkpoints.checkpoint import Checkpoint, Format, Preprocessing
from siglip2_jax.checkpoints.peft import write_adapter
from siglip2_jax.checkpoints.read import read
from siglip2_jax.checkpoints.source import SourceError
from siglip2_jax.checkpoints.table import ConversionError, Lazy, NonFiniteError
from siglip2_jax.checkpoints.write import write

__all__ = [
    "Checkpoint",
    "ConversionError",
    "Format",
    "Lazy",
    "NonFiniteError",
    "Preprocessing",
    "SourceError",
    "read",
    "write",
    "write_adapter",
]
