"""One arm of a comparison: does a part of the recipe help, at the same compute?

    siglip2 train configs/small_evidence.py --workdir /tmp/a --set data=DIR --set arm=caption

`scripts/evidence.py` runs all arms and measures. Every arm spends the model FLOPs that `steps`
steps of the sigmoid loss alone would:

- sigmoid: the sigmoid loss.
- caption: with a captioning decoder.
- distill: as caption for 80 % of the FLOPs, then with self-distillation and masked prediction.
- curate: the sigmoid loss on half of each super-batch; the teacher is a finished sigmoid run, whose
  own FLOPs are not counted.
"""

import os
from dataclasses import replace

from siglip2_jax.config import (
    Checkpoints,
    Continue,
    Curation,
    Data,
    Logging,
    Optim,
    Schedule,
    Stage,
    TrainConfig,
)
from siglip2_jax.data.augment import HorizontalFlip, RandomResizedCrop, Shrink
from siglip2_jax.data.colour import ColorJitter, Grayscale
from siglip2_jax.data.lengths import Lengths
from siglip2_jax.data.sources import Folder
from siglip2_jax.data.targets import DecoderTargets
from siglip2_jax.data.views import SelfSupervisedViews
from siglip2_jax.demo import TOKENIZER
from siglip2_jax.models.config import ModelConfig, TextConfig, VisionConfig
from siglip2_jax.models.layers import Compute
from siglip2_jax.objectives.caption import Captioning
from siglip2_jax.objectives.masked import MaskedPrediction
from siglip2_jax.objectives.self_distill import SelfDistill
from siglip2_jax.objectives.sigmoid import Sigmoid
from siglip2_jax.train.step import Program

PATCHES = 49
LENGTHS = {"flickr8k_1k": 48, "caltech101_20": 24}  # tokens of a text
BATCH = 64
ARMS = ("sigmoid", "caption", "distill", "curate")


def photos(data: str, dataset: str, split: str) -> Folder:
    """Images of a split; those of caltech101_20 are captioned by their class."""
    named = {"captions": "labels.jsonl", "template": "a photo of a {name}"}
    return Folder(
        os.path.join(data, dataset),
        where=(("split", split),),
        **(named if dataset == "caltech101_20" else {}),
    )


def model(length: int) -> ModelConfig:
    """About a million parameters, at native resolution with patches of 8 pixels."""
    tower = {"width": 128, "mlp_dim": 512, "num_heads": 4}
    return ModelConfig(
        vision=VisionConfig(**tower, depth=2, patch_size=8, grid=7, image_size=None),
        text=TextConfig(**tower, depth=1, vocab_size=1024, embed_dim=128, length=length),
    )


def config(
    data: str = "",
    dataset: str = "caltech101_20",
    arm: str = "sigmoid",
    steps: int = 1000,
    seed: int = 0,
    teacher: str = "",
) -> TrainConfig:
    """One run.

    Args:
      data: the directory with the data sets.
      dataset: flickr8k_1k or caltech101_20.
      arm: sigmoid, caption, distill or curate.
      steps: of the sigmoid loss alone, whose FLOPs the arm may spend.
      seed: of all randomness.
      teacher: workdir of a finished sigmoid run, for the arm curate.
    """
    if arm not in ARMS:
        raise ValueError(f"arm is {arm!r}; there are {', '.join(ARMS)}")
    length = LENGTHS[dataset]
    # Captions of caltech101_20 say nothing of colour, and its images are few.
    colours = (ColorJitter(0.4, 0.4, 0.4, 0.1), Grayscale(0.3)) if dataset[0] == "c" else ()
    crops = (Shrink(160), RandomResizedCrop((0.3, 1.0)), HorizontalFlip(), Shrink(72), *colours)
    plain = Stage(
        name="main",
        steps=steps,
        batch_size=BATCH,
        data=Data(source=photos(data, dataset, "train"), transforms=crops),
        lengths=Lengths(budgets=(PATCHES,), batch_scale=()),
        objectives={"sigmoid": Sigmoid()},
        optim=Optim(peak_lr=1e-3, weight_decay=3e-4, schedule=Schedule(warmup=steps // 20)),
    )
    targets = DecoderTargets(str(TOKENIZER), length=length, tasks=("caption",))
    captioned = replace(
        plain,
        data=replace(plain.data, transforms=(*crops, targets)),
        objectives=plain.objectives | {"caption": Captioning(depth=1, length=length)},
    )
    views = SelfSupervisedViews(patch_size=8, global_size=56, local_size=24, local_views=4)
    head = {"prototypes": 1024, "hidden": 256, "bottleneck": 64}
    distilled = replace(
        captioned,
        name="distill",
        start=Continue(stage="main"),
        data=replace(plain.data, transforms=(Shrink(160), views, *crops[1:], targets)),
        objectives=captioned.objectives
        | {
            "self_distill": SelfDistill(weight=0.25, **head),
            "masked": MaskedPrediction(weight=0.0625, **head),
        },
    )

    def run(*stages: Stage) -> TrainConfig:
        return TrainConfig(
            model=model(length),
            stages=stages,
            tokenizer=str(TOKENIZER),
            compute=Compute(scan=False),
            checkpoints=Checkpoints(every=1_000_000),
            logging=Logging(every=50),
            seed=seed,
        )

    def cost(stage: Stage) -> int:
        alone = replace(stage, steps=1000, start=plain.start)
        return Program(run(alone).resolved[0]).flops(PATCHES, stage.read_size)

    budget = steps * cost(plain)
    if arm == "sigmoid":
        return run(plain)
    if arm == "caption":
        return run(replace(captioned, steps=budget // cost(captioned)))
    if arm == "curate":
        start = Continue(workdir=teacher or "teacher")
        curated = replace(plain, curation=Curation(teacher=start, filter_ratio=0.5, chunks=8))
        return run(replace(curated, steps=budget // cost(curated)))
    first = round(0.8 * budget / cost(captioned))
    second = round(0.2 * budget / cost(distilled))
    schedule = replace(plain.optim.schedule, total_steps=first + second)
    return run(
        replace(captioned, steps=first, optim=replace(plain.optim, schedule=schedule)),
        replace(
            distilled,
            steps=second,
            optim=replace(plain.optim, schedule=replace(schedule, begin=first), ema=0.966),
        ),
    )
