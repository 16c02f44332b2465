"""The whole of SigLIP 2 (arXiv 2502.14786), g-opt: the stages of `siglip2_b16.py` but the fifth.

    siglip2 train configs/siglip2_g_opt.py --workdir gs://BUCKET/siglip2_g_opt
    siglip2 plan configs/siglip2_g_opt.py --topology v5e:16x16 --slices 8 --stage distill

Adapted to 384 pixels. The text tower and the decoder are So400m's, with 27 and 13 blocks (section
2.1). Self-supervised losses have the weights 0.5 and 0.125 (section 2.3).
"""

from pathlib import Path

from siglip2_jax.config import TrainConfig, load_config


def config(scale: float = 1.0, data: str = "", tokenizer: str = "") -> TrainConfig:
    """Five stages; arguments as in `siglip2_b16.py`."""
    given = {"size": "g-opt", "scale": scale, "data": data, "tokenizer": tokenizer}
    return load_config(
        Path(__file__).with_name("siglip2_b16.py"), [f"{k}={v}" for k, v in given.items()]
    )
