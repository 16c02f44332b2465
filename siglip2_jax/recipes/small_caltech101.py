"""A small model from scratch on 1,200 images of 100 things, captioned "a photo of a NAME".

    SIGLIP2_DATA=DIR siglip2 train small_caltech101 --workdir /tmp/caltech101

DIR holds `caltech101_20`: `labels.jsonl` with the fields file, name and split, and `images`. Its
validation images are classified zero-shot, with the same prompt.
"""

import os

from siglip2_jax.config import Checkpoints, Data, Logging, Optim, Schedule, Stage, TrainConfig
from siglip2_jax.data.augment import HorizontalFlip, RandomResizedCrop, Shrink
from siglip2_jax.data.colour import ColorJitter, Grayscale
from siglip2_jax.data.lengths import Lengths
from siglip2_jax.data.sources import Folder
from siglip2_jax.demo import TOKENIZER
from siglip2_jax.evals.zero_shot import ZeroShot
from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import ModelConfig, TextConfig, VisionConfig
from siglip2_jax.objectives.sigmoid import Sigmoid

BUDGET = 49  # patches of an image in training
# A crop shows 0.65 of an image on average, and its things as much larger; whole images need more
# patches for them to look as large (FixRes, arXiv 1906.06423).
EVAL_BUDGET = 75


def images(split: str, caption: str) -> Folder:
    """Images of a split under SIGLIP2_DATA, each with a caption made of its name."""
    if "SIGLIP2_DATA" not in os.environ:
        raise ValueError("set SIGLIP2_DATA to the directory that holds caltech101_20")
    path = os.path.join(os.environ["SIGLIP2_DATA"], "caltech101_20")
    return Folder(
        path,
        captions="labels.jsonl",
        where=(("split", split),),
        template=caption,
    )


def model() -> ModelConfig:
    """Two narrow towers; one layer is enough for the short prompts."""
    return ModelConfig(
        vision=VisionConfig(
            width=128, depth=2, mlp_dim=512, num_heads=4, patch_size=8, grid=7, image_size=None
        ),
        text=TextConfig(
            width=128, depth=1, mlp_dim=512, num_heads=4, vocab_size=1024, embed_dim=128, length=16
        ),
    )


def config() -> TrainConfig:
    """One stage at native resolution."""
    # The captions say nothing of colour, and the images are few.
    colours = (ColorJitter(0.4, 0.4, 0.4, 0.1), Grayscale(0.3))
    crops = (RandomResizedCrop((0.3, 1.0), (0.6, 1.6)), HorizontalFlip(), Shrink(80), *colours)
    val = images("val", "{name}")
    stage = Stage(
        name="main",
        steps=3000,
        batch_size=64,
        data=Data(source=images("train", "a photo of a {name}"), transforms=crops),
        lengths=Lengths(budgets=(BUDGET,), batch_scale=()),
        objectives={"sigmoid": Sigmoid()},
        optim=Optim(peak_lr=1e-3, weight_decay=3e-4, schedule=Schedule(warmup=1 / 30)),
        evals=(ZeroShot(source=val, name="val", every=500, max_num_patches=EVAL_BUDGET),),
    )
    return TrainConfig(
        model=model(),
        stages=(stage,),
        tokenizer=str(TOKENIZER),
        compute=Compute(scan=False),
        checkpoints=Checkpoints(every=500),
        logging=Logging(every=50),
    )
