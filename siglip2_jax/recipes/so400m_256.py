"""SigLIP 2 So400m/16: stage 1 of the paper with the sigmoid loss, at 256 pixels.

    siglip2 train so400m_256 --workdir gs://BUCKET/so400m_256
    siglip2 plan so400m_256 --topology v5e:16x16

The run of `b16_256` with larger towers. What v5e:16x16 keeps for the backward pass:

    everything of 10 of 27 layers, inputs of the others    837 ms, 14.43 GiB, MFU 0.634
    inputs of all layers, in a loop                        962 ms,  5.38 GiB, MFU 0.552
"""

import dataclasses

from siglip2_jax.config import TrainConfig
from siglip2_jax.models.config import two_towers
from siglip2_jax.recipes import b16_256


def config() -> TrainConfig:
    """One stage of 1,220,704 steps of 32,768 examples."""
    base = b16_256.config()
    model = two_towers("So400m", patch_size=16, image_size=256)
    compute = dataclasses.replace(base.compute, remat=0.63)
    return dataclasses.replace(base, model=model, compute=compute)
