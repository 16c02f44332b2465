"""SigLIP 2 in JAX: load and train image-text encoders, and use their parts.

    model = siglip2_jax.load("siglip2_b16_naflex.npz", tokenizer="tokenizer.model")
    model.probabilities(model.embed_images(["cat.jpg"]), model.embed_texts(["a cat", "a dog"]))

Use a model: `load` gives an `Embedder`, `load_captioner` a `Captioner`. As a Flax NNX module it is
`SigLIP2.from_pretrained(source)`, or `SigLIP2(config, rngs=...)` with a `ModelConfig`, such as
`two_towers("B", patch_size=16, image_size=None)`. Prepare its inputs: `ImagePreprocessor` makes
`Patches` of images, `pad_and_stack` stacks those that were cut one by one, `Tokenizer` makes ids of
texts. Train it: `sigmoid_loss` and `make_mesh` in a loop of your own; `TrainConfig` and
`load_config` for `siglip2 train`. `siglip2_jax.objectives`, `siglip2_jax.data` and
`siglip2_jax.config` hold the rest.

Names are imported on first use, so that `import siglip2_jax` and `siglip2 --help` are immediate.
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from siglip2_jax.config import TrainConfig, load_config
    from siglip2_jax.inference import Captioner, Embedder, SigLIP2, load, load_captioner
    from siglip2_jax.models import Compute, ModelConfig, TextConfig, VisionConfig, two_towers
    from siglip2_jax.objectives import sigmoid_loss
    from siglip2_jax.preprocess import ImagePreprocessor, Tokenizer, pad_and_stack
    from siglip2_jax.sharding import make_mesh
    from siglip2_jax.types import Batch, Features, Patches

__version__ = metadata.version("siglip2_jax")

_HOME = {
    "Batch": "siglip2_jax.types",
    "Captioner": "siglip2_jax.inference",
    "Compute": "siglip2_jax.models",
    "Embedder": "siglip2_jax.inference",
    "Features": "siglip2_jax.types",
    "ImagePreprocessor": "siglip2_jax.preprocess",
    "ModelConfig": "siglip2_jax.models",
    "Patches": "siglip2_jax.types",
    "SigLIP2": "siglip2_jax.inference",
    "TextConfig": "siglip2_jax.models",
    "Tokenizer": "siglip2_jax.preprocess",
    "TrainConfig": "siglip2_jax.config",
    "VisionConfig": "siglip2_jax.models",
    "load": "siglip2_jax.inference",
    "load_captioner": "siglip2_jax.inference",
    "load_config": "siglip2_jax.config",
    "make_mesh": "siglip2_jax.sharding",
    "pad_and_stack": "siglip2_jax.preprocess",
    "sigmoid_loss": "siglip2_jax.objectives",
    "two_towers": "siglip2_jax.models",
}

__all__ = [
    "Batch",
    "Captioner",
    "Compute",
    "Embedder",
    "Features",
    "ImagePreprocessor",
    "ModelConfig",
    "Patches",
    "SigLIP2",
    "TextConfig",
    "Tokenizer",
    "TrainConfig",
    "VisionConfig",
    "__version__",
    "load",
    "load_captioner",
    "load_config",
    "make_mesh",
    "pad_and_stack",
    "sigmoid_loss",
    "two_towers",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'siglip2_jax' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
