"""A small model from scratch on 700 images of Flickr8k with five captions each.

SIGLIP2_DATA=DIR siglip2 train small_flickr8k --workdir /tmp/flickr8k
"""

import os
from functools import partial

from siglip2_jax.config import Checkpoints, Data, Logging, Optim, Schedule, Stage, TrainConfig
from siglip2_jax.data.augment import HorizontalFlip, RandomResizedCrop
from siglip2_jax.data.lengths import Lengths
from siglip2_jax.data.sources import Folder
from siglip2_jax.demo import TOKENIZER
from siglip2_jax.evals.retrieval import Retrieval
from siglip2_jax.models.config import ModelConfig, TextConfig, VisionConfig
from siglip2_jax.models.layers import Compute
from siglip2_jax.objectives.sigmoid import Sigmoid

BUDGET = 64  # patches of an image


def images(split: str) -> Folder:
    """Images of a split, under the directory that SIGLIP2_DATA names."""
    if "SIGLIP2_DATA" not in os.environ:
        raise ValueError("set SIGLIP2_DATA to the directory that holds flickr8k_1k")
    path = os.path.join(os.environ["SIGLIP2_DATA"], "flickr8k_1k")
    return Folder(path, where=(("split", split),))


def model() -> ModelConfig:
    """Two narrow towers."""
    return ModelConfig(
        vision=VisionConfig(
            width=128, depth=4, mlp_dim=512, num_heads=4, patch_size=16, grid=8, image_size=None
        ),
        text=TextConfig(
            width=128, depth=2, mlp_dim=512, num_heads=4, vocab_size=1024, embed_dim=128, length=40
        ),
    )


def config() -> TrainConfig:
    """One stage at native resolution."""
    recall = partial(Retrieval, every=250, max_num_patches=BUDGET)
    stage = Stage(
        name="main",
        steps=1000,
        batch_size=64,
        data=Data(
            source=images("train"), transforms=(RandomResizedCrop((0.3, 1.0)), HorizontalFlip())
        ),
        lengths=Lengths(budgets=(BUDGET,), batch_scale=()),
        objectives={"sigmoid": Sigmoid()},
        optim=Optim(peak_lr=1e-3, schedule=Schedule(warmup=0.1)),
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
