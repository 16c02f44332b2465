"""The whole of SigLIP 2 (arXiv 2502.14786), g-opt: the stages of `siglip2_b16` but the fifth.

    siglip2 train siglip2_g_opt --workdir gs://BUCKET/siglip2_g_opt
    siglip2 plan siglip2_g_opt --topology v5e:16x16 --slices 8 --stage distill

Adapted to 384 pixels. The text tower and the decoder are So400m's, with 27 and 13 blocks (section
2.1). Self-supervised losses have the weights 0.5 and 0.125 (section 2.3).
"""

from siglip2_jax.config import TrainConfig
from siglip2_jax.recipes import siglip2_b16


def config(scale: float = 1.0, data: str = "", tokenizer: str = "") -> TrainConfig:
    """Five stages; arguments as in `siglip2_b16`."""
    return siglip2_b16.config(scale, size="g-opt", data=data, tokenizer=tokenizer)
