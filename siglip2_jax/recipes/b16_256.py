"""SigLIP 2 B/16: stage 1 of the paper with the sigmoid loss, at 256 pixels.

    siglip2 train b16_256 --workdir gs://BUCKET/b16_256
    siglip2 plan b16_256 --topology v5e:16x16

On v5e:16x16, unrolled, with everything kept for the backward pass: 166 ms a step, 10.15 GiB, MFU
0.674; `b16_naflex` has a table of what else could be kept.

40 billion examples in batches of 32,768 (arXiv 2502.14786, sections 2.1 and 2.2). Data and
tokenizer are yours:

    --set data.source.pattern=/data/train/*.arrayrecord --set tokenizer=/data/tokenizer.model
"""

from siglip2_jax.config import (
    Checkpoints,
    Data,
    Logging,
    Optim,
    Schedule,
    Stage,
    TrainConfig,
)
from siglip2_jax.data.records import Records
from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import two_towers
from siglip2_jax.objectives.sigmoid import Sigmoid


def config() -> TrainConfig:
    """One stage of 1,220,704 steps; 32,768 examples a step fit 256 chips of v5e."""
    stage = Stage(
        name="main",
        examples=40_000_000_000,
        batch_size=32_768,
        data=Data(source=Records("/data/train/*.arrayrecord"), workers="auto", threads=1),
        objectives={"sigmoid": Sigmoid()},
        optim=Optim(peak_lr=1e-3, weight_decay=1e-4, schedule=Schedule(warmup=20_000 / 1_220_704)),
    )
    return TrainConfig(
        model=two_towers("B", patch_size=16, image_size=256),
        stages=(stage,),
        tokenizer="/data/tokenizer.model",
        compute=Compute(dtype="bfloat16", scan=False),
        checkpoints=Checkpoints(every=1000, keep_last=3, keep_every=50_000),
        logging=Logging(every=50, tensorboard=True),
    )
