"""A small decoder that learns images by heart: captions, boxes for phrases, phrases for boxes.

    siglip2 train small_decoder --workdir /tmp/decoder \
        --set data=COCO_DIR --set rows=/tmp/rows.jsonl

It shows that what is written can be read back. `scripts/train_decoder.py` makes the rows, runs it
and measures.
"""

from siglip2_jax.config import Checkpoints, Data, Logging, Optim, Schedule, Stage, TrainConfig
from siglip2_jax.data.lengths import Lengths
from siglip2_jax.data.sources import Folder
from siglip2_jax.data.targets import DecoderTargets
from siglip2_jax.demo import HERE, TOKENIZER
from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import ModelConfig, TextConfig, VisionConfig
from siglip2_jax.objectives.caption import Captioning
from siglip2_jax.objectives.sigmoid import Sigmoid

LENGTH = 48  # tokens of a sentence; the shipped tokenizer takes up to 30 for a phrase and its box


def model() -> ModelConfig:
    """Two narrow towers at native resolution; the decoder is as wide as the text tower."""
    return ModelConfig(
        vision=VisionConfig(
            width=128, depth=2, mlp_dim=512, num_heads=4, patch_size=16, grid=8, image_size=None
        ),
        text=TextConfig(
            width=128,
            depth=1,
            mlp_dim=512,
            num_heads=4,
            vocab_size=1024,
            embed_dim=128,
            length=LENGTH,
        ),
    )


def config(
    data: str = str(HERE), rows: str = "examples.jsonl", images: str = "photos"
) -> TrainConfig:
    """One stage of 2,500 steps.

    Args:
      data: a directory.
      rows: a file of JSON lines in it, with `captions` and `regions`.
      images: the directory's folder of images.
    """
    targets = DecoderTargets(str(TOKENIZER), length=LENGTH)
    stage = Stage(
        name="main",
        steps=2500,
        batch_size=32,
        data=Data(source=Folder(data, captions=rows, images=images), transforms=(targets,)),
        lengths=Lengths(budgets=(48,), batch_scale=()),
        objectives={
            "sigmoid": Sigmoid(weight=0.1),
            "caption": Captioning(parallel=0.5, depth=2, length=LENGTH),
        },
        optim=Optim(peak_lr=1e-3, weight_decay=1e-5, schedule=Schedule(warmup=0.04)),
    )
    return TrainConfig(
        model=model(),
        stages=(stage,),
        tokenizer=str(TOKENIZER),
        compute=Compute(scan=False),
        checkpoints=Checkpoints(every=500),
        logging=Logging(every=50),
    )
