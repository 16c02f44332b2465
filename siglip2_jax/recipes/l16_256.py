"""SigLIP 2 L/16: stage 1 of the paper with the sigmoid loss, at 256 pixels.

    siglip2 train l16_256 --workdir gs://BUCKET/l16_256
    siglip2 plan l16_256 --topology v5e:16x16

The run of `b16_256` with larger towers. What v5e:16x16 keeps for the backward pass:

    everything of the later half of the layers, inputs of the others    613 ms, 14.27 GiB, MFU 0.638
    inputs of all layers, unrolled                                      686 ms,  5.21 GiB, MFU 0.570
    inputs of all layers, in a loop                                     717 ms,  5.58 GiB, MFU 0.545
"""

import dataclasses

from siglip2_jax.config import TrainConfig
from siglip2_jax.models.config import two_towers
from siglip2_jax.recipes import b16_256


def config() -> TrainConfig:
    """One stage of 1,220,704 steps of 32,768 examples."""
    base = b16_256.config()
    model = two_towers("L", patch_size=16, image_size=256)
    compute = dataclasses.replace(base.compute, remat=0.5)  # to keep everything would not fit
    return dataclasses.replace(base, model=model, compute=compute)
