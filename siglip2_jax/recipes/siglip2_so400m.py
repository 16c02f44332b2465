"""The whole of SigLIP 2 (arXiv 2502.14786), So400m: the stages of `siglip2_b16` but the fifth.

    siglip2 train siglip2_so400m --workdir gs://BUCKET/siglip2_so400m
    siglip2 plan siglip2_so400m --topology v5e:16x16 --slices 8 --stage distill

Adapted to patches of 14 at 224 and 384 pixels and of 16 at 384 and 512. The decoder has 13 blocks:
half of the text tower's 27. Self-supervised losses have the weights 1 and 0.25 (section 2.3).
"""

from siglip2_jax.config import TrainConfig
from siglip2_jax.recipes import siglip2_b16


def config(
    scale: float = 1.0, data: str = "", other_languages: str = "", tokenizer: str = ""
) -> TrainConfig:
    """Eight stages; arguments as in `siglip2_b16`."""
    return siglip2_b16.config(
        scale, size="So400m", data=data, other_languages=other_languages, tokenizer=tokenizer
    )
