"""So400m as the teacher that curates B: fine-tuned on 1 billion curated examples.

    siglip2 train curating_teacher --workdir gs://BUCKET/teacher_p16_256 \\
        --set data='/data/curated/*.arrayrecord' --set tokenizer=/data/tokenizer.model
    siglip2 train siglip2_b16 --workdir gs://BUCKET/siglip2_b16 \\
        --set teacher='gs://BUCKET/teacher_p{patch_size}_{pixels}'
    siglip2 plan curating_teacher --topology v5e:16x16

SigLIP 2 (arXiv 2502.14786, section 2.5) curates with one So400m, fine-tuned on the curated set of
ACID (arXiv 2411.18674), which is not public: bring a set of yours. Which variant it is and how it
is fine-tuned are unpublished; learning rate, weight decay and loss here are those of the curated
stage. A teacher reads the pixels that its student reads, so that each size of images has one.
"""

from dataclasses import replace

from siglip2_jax.config import (
    Checkpoints,
    Data,
    Logging,
    Optim,
    Pretrained,
    Schedule,
    Stage,
    TrainConfig,
)
from siglip2_jax.data.records import Records
from siglip2_jax.models.config import two_towers
from siglip2_jax.objectives.sigmoid import Sigmoid
from siglip2_jax.recipes import so400m_256
from siglip2_jax.recipes.siglip2_b16 import BATCH, TEACHERS

# What of the blocks is computed again, by pixels; where nothing is said, as in `so400m_256`
# (docs/performance.md, "Settings of the recipe").
REMAT: dict[int, float | str] = {384: 0.85, 512: "full"}


def config(
    pixels: int = 256,
    data: str = "/data/curated/*.arrayrecord",
    tokenizer: str = "/data/tokenizer.model",
) -> TrainConfig:
    """One stage of 30,518 steps of 32,768 examples.

    Args:
      pixels: side of the images: 224, 256, 384 or 512.
      data: a glob of ArrayRecord files.
      tokenizer: Gemma's.
    """
    if pixels not in TEACHERS:
        sizes = ", ".join(map(str, TEACHERS))
        raise ValueError(
            f"pixels is {pixels}; B was released at, and is curated at, one of {sizes}"
        )
    patch, base = TEACHERS[pixels], so400m_256.config().compute
    stage = Stage(
        name="main",
        examples=1_000_000_000,
        batch_size=BATCH,
        start=Pretrained(source=f"google/siglip2-so400m-patch{patch}-{pixels}"),
        data=Data(source=Records(data), workers="auto", threads=1),
        objectives={"sigmoid": Sigmoid()},
        optim=Optim(peak_lr=1e-5, weight_decay=0.0, schedule=Schedule(kind="constant")),
    )
    return TrainConfig(
        model=two_towers("So400m", patch_size=patch, image_size=pixels),
        stages=(stage,),
        tokenizer=tokenizer,
        compute=replace(base, remat=REMAT.get(pixels, base.remat)),
        checkpoints=Checkpoints(every=1000),
        logging=Logging(every=50),
    )
