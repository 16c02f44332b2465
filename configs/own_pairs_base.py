"""The base model of `scripts/own_pairs_table.py`: two small towers that have never seen Flickr8k.

    siglip2 train configs/own_pairs_base.py --workdir /tmp/base --set data=DIR

DIR holds `caltech101_20` (1,200 images, captioned with their names) and `coco_mini` (187 images
with five captions each).
"""

import os

from siglip2_jax.config import Checkpoints, Data, Logging, Optim, Schedule, Stage, TrainConfig
from siglip2_jax.data.augment import HorizontalFlip, RandomResizedCrop, Shrink
from siglip2_jax.data.lengths import Lengths
from siglip2_jax.data.sources import Folder, Mixture
from siglip2_jax.demo import TOKENIZER
from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import ModelConfig, TextConfig, VisionConfig
from siglip2_jax.objectives.sigmoid import Sigmoid

PATCHES = 36
BATCH = 64
TEMPLATES = ("a photo of a {name}", "a picture of a {name}", "there is a {name} in this photo")


def config(data: str = "", steps: int = 600) -> TrainConfig:
    """One stage at native resolution.

    Args:
      data: the directory with the data sets.
      steps: of the run.
    """
    train = (("split", "train"),)
    things = os.path.join(data, "caltech101_20")
    coco = os.path.join(data, "coco_mini")
    names = [
        (Folder(things, captions="labels.jsonl", where=train, template=template), 2.0)
        for template in TEMPLATES
    ]
    scenes = Folder(coco, captions="annotations.jsonl")
    stage = Stage(
        name="main",
        steps=steps,
        batch_size=BATCH,
        data=Data(
            source=Mixture((*names, (scenes, 4.0))),
            transforms=(Shrink(256), RandomResizedCrop((0.3, 1.0)), HorizontalFlip()),
        ),
        lengths=Lengths(budgets=(PATCHES,), batch_scale=()),
        objectives={"sigmoid": Sigmoid()},
        optim=Optim(peak_lr=1e-3, schedule=Schedule(warmup=0.1)),
    )
    return TrainConfig(
        model=ModelConfig(
            vision=VisionConfig(
                width=128, depth=2, mlp_dim=512, num_heads=4, patch_size=16, grid=6, image_size=None
            ),
            text=TextConfig(
                width=128,
                depth=2,
                mlp_dim=512,
                num_heads=4,
                vocab_size=1024,
                embed_dim=128,
                length=24,
            ),
        ),
        stages=(stage,),
        tokenizer=str(TOKENIZER),
        compute=Compute(scan=False),
        checkpoints=Checkpoints(every=100, keep_last=1),
        logging=Logging(every=25),
    )
