"""LiT: a text tower for a trained image tower, which stays as it is (arXiv 2111.07991).

    siglip2 train lit --workdir gs://BUCKET/lit
    siglip2 plan lit --topology v5e:4x4

The image tower comes from a released model, in any format; text tower, `t` and `b` are fresh. Its
gradient is never computed, so a step costs about half and the optimizer holds the text tower only.
"""

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
from siglip2_jax.data.records import Records
from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import two_towers
from siglip2_jax.objectives.sigmoid import Sigmoid


def config() -> TrainConfig:
    """One stage of 900 million examples in batches of 4,096, on 16 chips of v5e."""
    stage = Stage(
        name="main",
        examples=900_000_000,
        batch_size=4096,
        start=Pretrained(source="google/siglip2-base-patch16-256", parts=("vision/.*",)),
        data=Data(source=Records("/data/train/*.arrayrecord"), workers="auto", threads=1),
        objectives={"sigmoid": Sigmoid()},
        optim=Optim(
            peak_lr=1e-3,
            weight_decay=1e-4,
            schedule=Schedule(warmup=10_000 / 219_727),
            groups=(Group(pattern="vision/.*", frozen=True),),
        ),
    )
    return TrainConfig(
        model=two_towers("B", patch_size=16, image_size=256),
        stages=(stage,),
        tokenizer="/data/tokenizer.model",
        compute=Compute(dtype="bfloat16", scan=False),
        checkpoints=Checkpoints(every=1000),
        logging=Logging(every=50),
    )
