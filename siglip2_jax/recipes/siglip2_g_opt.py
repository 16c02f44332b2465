"""The whole of SigLIP 2 (arXiv 2502.14786), g-opt: stages 1 to 3 of `siglip2_b16`.

    siglip2 train siglip2_g_opt --workdir gs://BUCKET/siglip2_g_opt
    siglip2 plan siglip2_g_opt --topology v5e:16x16 --slices 8 --stage distill

Adapted to 384 pixels; no NaFlex variant was released, and `--set naflex=true` trains one. The text
tower and the decoder are So400m's, with 27 and 13 blocks (section 2.1). Self-supervised losses have
the weights 0.5 and 0.125 (section 2.3).
"""

from siglip2_jax.config import TrainConfig
from siglip2_jax.recipes import siglip2_b16


def config(
    scale: float = 1.0,
    data: str = "",
    other_languages: str = "",
    tokenizer: str = "",
    naflex: bool | None = None,
) -> TrainConfig:
    """Three stages, five with `naflex`; arguments as in `siglip2_b16`."""
    return siglip2_b16.config(
        scale,
        size="g-opt",
        data=data,
        other_languages=other_languages,
        tokenizer=tokenizer,
        naflex=naflex,
    )
