"""SigLIP 2 So400m/16 NaFlex: native aspect ratio and five sequence lengths, from a run at 90 %.

    siglip2 train configs/so400m_naflex.py --workdir gs://BUCKET/so400m_naflex
    siglip2 plan configs/so400m_naflex.py --topology v5e:16x16 --budget 256

The run of `b16_naflex.py` with larger towers, from the run of `so400m_256.py`.
"""

import dataclasses
from pathlib import Path

from siglip2_jax.config import Continue, TrainConfig, load_config
from siglip2_jax.models.config import two_towers


def config() -> TrainConfig:
    """One stage of 15 billion examples, 549,317 steps."""
    base = load_config(Path(__file__).with_name("b16_naflex.py"))
    stage = dataclasses.replace(
        base.stages[0],
        start=Continue(workdir="gs://BUCKET/so400m_256", stage="main", fraction=0.9),
    )
    model = two_towers("So400m", patch_size=16, image_size=None)
    compute = dataclasses.replace(base.compute, scan=True, remat="full")
    return dataclasses.replace(base, model=model, stages=(stage,), compute=compute)
