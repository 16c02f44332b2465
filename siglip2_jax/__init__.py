"""SigLIP 2 in JAX: load released checkpoints, embed images and texts.

Names are imported on first use, so that `import siglip2_jax` and `siglip2 --help` are immediate.
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from siglip2_jax.inference import Captioner, Embedder, load, load_captioner
    from siglip2_jax.models.siglip2 import SigLIP2
    from siglip2_jax.types import Batch, Features, Patches

__version__ = metadata.version("siglip2_jax")

_HOME = {
    "Batch": "siglip2_jax.types",
    "Captioner": "siglip2_jax.inference",
    "Embedder": "siglip2_jax.inference",
    "Features": "siglip2_jax.types",
    "Patches": "siglip2_jax.types",
    "SigLIP2": "siglip2_jax.models.siglip2",
    "load": "siglip2_jax.inference",
    "load_captioner": "siglip2_jax.inference",
}

__all__ = [
    "Batch",
    "Captioner",
    "Embedder",
    "Features",
    "Patches",
    "SigLIP2",
    "__version__",
    "load",
    "load_captioner",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'siglip2_jax' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
