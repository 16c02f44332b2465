"""SigLIP 2 g-opt/16: stage 1 of the paper with the sigmoid loss, at 256 pixels.

    siglip2 train configs/g_opt_256.py --workdir gs://BUCKET/g_opt_256
    siglip2 plan configs/g_opt_256.py --topology v5e:16x16

The run of `b16_256.py` with larger towers.
"""

import dataclasses
from pathlib import Path

from siglip2_jax.config import TrainConfig, load_config
from siglip2_jax.models.config import two_towers


def config() -> TrainConfig:
    """One stage of 1,220,704 steps of 32,768 examples."""
    base = load_config(Path(__file__).with_name("b16_256.py"))
    model = two_towers("g-opt", patch_size=16, image_size=256)
    compute = dataclasses.replace(base.compute, remat="full", scan=True)
    return dataclasses.replace(base, model=model, compute=compute)
