"""SigLIP 2 g-opt/16: stage 1 of the paper with the sigmoid loss, at 256 pixels.

    siglip2 train g_opt_256 --workdir gs://BUCKET/g_opt_256
    siglip2 plan g_opt_256 --topology v5e:16x16

The run of `b16_256` with larger towers. On v5e:16x16 the backward pass finds everything of 5 of
40 layers, unrolled, and the inputs of the others: 1,948 ms, 15.27 GiB, MFU 0.650.
"""

import dataclasses

from siglip2_jax.config import TrainConfig
from siglip2_jax.models.config import two_towers
from siglip2_jax.recipes import b16_256


def config() -> TrainConfig:
    """One stage of 1,220,704 steps of 32,768 examples."""
    base = b16_256.config()
    model = two_towers("g-opt", patch_size=16, image_size=256)
    compute = dataclasses.replace(base.compute, remat=0.87)
    return dataclasses.replace(base, model=model, compute=compute)
