"""Images to patches and texts to token ids."""

from siglip2_jax.preprocess.decode import ImageError, ImageSource
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.preprocess.patches import ImagePatches, pad_and_stack
from siglip2_jax.preprocess.tokenizer import Tokenizer, TokenizerError, Tokens

__all__ = [
    "ImageError",
    "ImagePatches",
    "ImagePreprocessor",
    "ImageSource",
    "Tokenizer",
    "TokenizerError",
    "Tokens",
    "pad_and_stack",
]
