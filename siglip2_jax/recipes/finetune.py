"""Fine-tuning a released model on your own pairs, on one host of TPUs.

    siglip2 train finetune --workdir /tmp/finetune \\
      --set data.source.path=/data/pairs --set tokenizer=/data/tokenizer.model
    siglip2 plan finetune --topology v5e:2x4

Both towers move slowly (1 % of the rate of pre-training, no weight decay). `b` has learned how
rare a match is in batches of 32,768; in batches of 512 a match is 64 times as likely, so `b` starts
log 64 higher, and `t` and `b` learn ten times as fast as the towers. Without this the first updates
are spent on `b`, and the towers suffer. The pre-flight line says whether it fits your batch.
"""

import math
from typing import Literal

from siglip2_jax.config import (
    Checkpoints,
    Data,
    Group,
    Logging,
    Optim,
    Pretrained,
    Schedule,
    Stage,
    TrainConfig,
)
from siglip2_jax.data.lengths import Lengths
from siglip2_jax.data.sources import Folder
from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import two_towers
from siglip2_jax.objectives.sigmoid import Sigmoid

RELEASES = {
    "B": "google/siglip2-base-patch16-naflex",
    "So400m": "google/siglip2-so400m-patch16-naflex",
}
RELEASED_BATCH = 32_768
BATCH = 512


def config(size: Literal["B", "So400m"] = "B") -> TrainConfig:
    """One stage of 2,000 steps at 256 patches, native aspect ratio.

    Args:
      size: of the towers.
    """
    stage = Stage(
        name="main",
        steps=2000,
        batch_size=BATCH,
        start=Pretrained(
            source=RELEASES[size],
            bias_shift=math.log(RELEASED_BATCH / BATCH),
        ),
        data=Data(source=Folder("/data/pairs"), workers="auto", threads=1),
        lengths=Lengths(budgets=(256,), batch_scale=()),
        objectives={"sigmoid": Sigmoid()},
        optim=Optim(
            peak_lr=1e-5,
            weight_decay=0.0,
            schedule=Schedule(warmup=0.05),
            groups=(Group(pattern="t|b", lr_scale=10.0),),
        ),
    )
    compute = Compute(dtype="bfloat16", scan=False)  # keeps everything: fits B on v5e:2x4
    if size != "B":
        compute = Compute(dtype="bfloat16", remat="full")
    return TrainConfig(
        model=two_towers(size, patch_size=16, image_size=None),
        stages=(stage,),
        tokenizer="/data/tokenizer.model",
        compute=compute,
        checkpoints=Checkpoints(every=500),
        logging=Logging(every=10),
    )
