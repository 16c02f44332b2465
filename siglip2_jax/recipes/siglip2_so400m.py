"""The whole of SigLIP 2 (arXiv 2502.14786), So400m: the stages of `siglip2_b16.py` but the fifth.

    siglip2 train configs/siglip2_so400m.py --workdir gs://BUCKET/siglip2_so400m
    siglip2 plan configs/siglip2_so400m.py --topology v5e:16x16 --slices 8 --stage distill

Adapted to patches of 14 at 224 and 384 pixels and of 16 at 384 and 512. The decoder has 13 blocks:
half of the text tower's 27. Self-supervised losses have the weights 1 and 0.25 (section 2.3).
"""

from pathlib import Path

from siglip2_jax.config import TrainConfig, load_config


def config(scale: float = 1.0, data: str = "", tokenizer: str = "") -> TrainConfig:
    """Eight stages; arguments as in `siglip2_b16.py`."""
    given = {"size": "So400m", "scale": scale, "data": data, "tokenizer": tokenizer}
    return load_config(
        Path(__file__).with_name("siglip2_b16.py"), [f"{k}={v}" for k, v in given.items()]
    )
