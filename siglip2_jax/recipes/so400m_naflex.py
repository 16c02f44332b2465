"""SigLIP 2 So400m/16 NaFlex: native aspect ratio and five sequence lengths, from a run at 90 %.

    siglip2 train so400m_naflex --workdir gs://BUCKET/so400m_naflex
    siglip2 plan so400m_naflex --topology v5e:16x16 --budget 256

The run of `b16_naflex` with larger towers, from the run of `so400m_256`. On v5e:16x16, unrolled,
the first of 27 blocks are computed again in the backward pass, 17 of texts and of images as many as
must be:

    patches    computed again    step        peak         MFU
    128        4                   465 ms    14.81 GiB    0.673
    256        17                  837 ms    14.43 GiB    0.634
    576        25                1,978 ms    14.27 GiB    0.561
    784        27                2,885 ms    13.76 GiB    0.524
    1024       23                1,852 ms    14.76 GiB    0.541
"""

import dataclasses

from siglip2_jax.config import Continue, TrainConfig
from siglip2_jax.models.config import two_towers
from siglip2_jax.recipes import b16_naflex


def config() -> TrainConfig:
    """One stage of 15 billion examples, 549,317 steps."""
    base = b16_naflex.config()
    stage = dataclasses.replace(
        base.stages[0],
        start=Continue(workdir="gs://BUCKET/so400m_256", stage="main", fraction=0.9),
    )
    model = two_towers("So400m", patch_size=16, image_size=None)
    compute = dataclasses.replace(
        base.compute,
        remat_up_to=((64, 0.63), (128, 0.15), (256, 0.63), (576, 0.93), (784, 1.0)),  # 64: of texts
        remat=0.85,  # half a batch at 1024
    )
    return dataclasses.replace(base, model=model, stages=(stage,), compute=compute)
