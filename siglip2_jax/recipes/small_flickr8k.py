"""A small model from scratch on 700 images of Flickr8k with five captions each.

    SIGLIP2_DATA=DIR siglip2 train small_flickr8k --workdir /tmp/flickr8k

DIR holds `flickr8k_1k` and `caltech101_20`, whose 1,200 images of things, with their names as
captions, are drawn as well. So few images are soon known by heart: strong crops and colours, words
left out of captions, narrow towers and weight decay are against that (docs/measurements.md).
"""

import os
from functools import partial
from typing import Any

from siglip2_jax.config import Checkpoints, Data, Logging, Optim, Schedule, Stage, TrainConfig
from siglip2_jax.data.augment import HorizontalFlip, RandomResizedCrop, Shrink
from siglip2_jax.data.captions import DropWords
from siglip2_jax.data.colour import ColorJitter
from siglip2_jax.data.lengths import Lengths
from siglip2_jax.data.sources import Folder, Mixture
from siglip2_jax.demo import TOKENIZER
from siglip2_jax.evals.retrieval import Retrieval
from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import ModelConfig, TextConfig, VisionConfig
from siglip2_jax.objectives.sigmoid import Sigmoid
from siglip2_jax.recipes import small_caltech101

BUDGET = 64  # patches of an image
PROMPTS = ("a photo of a {name}", "a picture of a {name}", "there is a {name} in this photo")
THINGS = 0.7  # draws of things for one of Flickr8k


def images(split: str) -> Folder:
    """Images of a split, under the directory that SIGLIP2_DATA names."""
    if "SIGLIP2_DATA" not in os.environ:
        raise ValueError(
            "set SIGLIP2_DATA to the directory that holds flickr8k_1k and caltech101_20"
        )
    path = os.path.join(os.environ["SIGLIP2_DATA"], "flickr8k_1k")
    return Folder(path, where=(("split", split),))


def model() -> ModelConfig:
    """Two narrow towers."""
    tower: dict[str, Any] = {"width": 64, "mlp_dim": 256, "num_heads": 2}
    return ModelConfig(
        vision=VisionConfig(**tower, depth=3, patch_size=16, grid=8, image_size=None),
        text=TextConfig(**tower, depth=1, vocab_size=1024, embed_dim=64, length=40),
    )


def config() -> TrainConfig:
    """One stage at native resolution."""
    recall = partial(Retrieval, every=500, max_num_patches=BUDGET)
    share = THINGS / len(PROMPTS)
    things = ((small_caltech101.images("train", prompt), share) for prompt in PROMPTS)
    drawn = ((images("train"), 1.0), *things)
    seen = (RandomResizedCrop((0.2, 1.0)), HorizontalFlip(), ColorJitter(0.2, 0.2, 0.2, 0.05))
    stage = Stage(
        name="main",
        steps=2500,
        batch_size=128,
        data=Data(source=Mixture(drawn), transforms=(Shrink(160), *seen, DropWords(0.3))),
        lengths=Lengths(budgets=(BUDGET,), batch_scale=()),
        objectives={"sigmoid": Sigmoid()},
        optim=Optim(peak_lr=2e-3, weight_decay=3e-3, schedule=Schedule(warmup=0.1)),
        evals=(
            recall(source=images("val"), name="val"),
            recall(source=images("train"), name="train", count=100),
        ),
    )
    return TrainConfig(
        model=model(),
        stages=(stage,),
        tokenizer=str(TOKENIZER),
        compute=Compute(scan=False),
        checkpoints=Checkpoints(every=10_000),
        logging=Logging(every=50),
    )
