"""SigLIP 2 L/16: stage 1 of the paper with the sigmoid loss, at 256 pixels.

    siglip2 train configs/l16_256.py --workdir gs://BUCKET/l16_256
    siglip2 plan configs/l16_256.py --topology v5e:16x16

The run of `b16_256.py` with larger towers. On v5e:16x16 everything cannot be kept for the backward
pass; the inputs of layers can:

    unrolled    683 ms, 5.59 GiB, MFU 0.572
    in a loop   717 ms, 5.58 GiB, MFU 0.545
"""

import dataclasses
from pathlib import Path

from siglip2_jax.config import TrainConfig, load_config
from siglip2_jax.models.config import two_towers


def config() -> TrainConfig:
    """One stage of 1,220,704 steps of 32,768 examples."""
    base = load_config(Path(__file__).with_name("b16_256.py"))
    model = two_towers("L", patch_size=16, image_size=256)
    compute = dataclasses.replace(base.compute, remat="full")  # all that is kept would not fit
    return dataclasses.replace(base, model=model, compute=compute)
