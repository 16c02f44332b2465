"""Runs of a comparison: what do parts of the recipe add to a model that is trained already?

    siglip2 train configs/small_evidence.py --workdir /tmp/base --set data=DIR --set prepared=OUT

`scripts/evidence.py` prepares OUT, trains the base model and all arms, and writes the report.
docs/evidence.md has the design. The base model learns at a constant rate; an arm goes on from it,
with the rate falling to 0, as the paper's last fifth does:

- as_is: with the sigmoid loss, as before.
- ssl: with self-distillation and masked prediction.
- self_distill, masked: with one of the two.
- ibot: ssl with the patch loss over all patches, of which 0.75 are hidden (iBOT++, TIPSv2).
- boxes: with a decoder that writes captions, boxes for phrases and phrases for boxes.
"""

import os
from dataclasses import replace

from evidence_patches import CocoPatches
from evidence_probes import FrozenProbes

from siglip2_jax.benchmarks.dense.open_vocabulary import OpenVocabulary
from siglip2_jax.config import (
    Checkpoints,
    Continue,
    Data,
    Logging,
    Optim,
    Schedule,
    Stage,
    TrainConfig,
)
from siglip2_jax.data.augment import HorizontalFlip, RandomResizedCrop, Shrink
from siglip2_jax.data.lengths import Lengths
from siglip2_jax.data.sources import Folder, Mixture
from siglip2_jax.data.targets import DecoderTargets
from siglip2_jax.data.text import read_json
from siglip2_jax.data.views import SelfSupervisedViews
from siglip2_jax.demo import TOKENIZER
from siglip2_jax.evals.retrieval import Retrieval
from siglip2_jax.evals.zero_shot import ZeroShot
from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import ModelConfig, TextConfig, VisionConfig
from siglip2_jax.objectives.caption import Captioning
from siglip2_jax.objectives.masked import MaskedPrediction
from siglip2_jax.objectives.self_distill import SelfDistill
from siglip2_jax.objectives.sigmoid import Sigmoid

PATCHES = 64  # of an image in training, and in retrieval and zero-shot
FINE = 192  # of an image where patches are measured
LENGTH = 40  # tokens of a text
SENTENCE = 48  # tokens that the decoder writes
BATCH = 32
LR = 1e-3
ARMS = ("as_is", "ssl", "self_distill", "masked", "ibot", "boxes")
PROMPTS = ("a photo of a {name}", "a picture of a {name}", "there is a {name} in this photo")
AT_THE_END = 1_000_000


def model(width: int = 128) -> ModelConfig:
    """About two million parameters, at native resolution; fewer where towers are narrower."""
    tower = {"width": width, "mlp_dim": 4 * width, "num_heads": width // 32}
    return ModelConfig(
        vision=VisionConfig(**tower, depth=4, patch_size=16, grid=8, image_size=None),
        text=TextConfig(**tower, depth=2, vocab_size=1024, embed_dim=width, length=LENGTH),
    )


def named_images(data: str) -> tuple[tuple[Folder, float], ...]:
    """Training images of caltech101_20 with each prompt, as equal parts of a mixture."""
    things = os.path.join(data, "caltech101_20")
    return tuple(
        (Folder(things, captions="labels.jsonl", where=(("split", "train"),), template=x), 1.0)
        for x in PROMPTS
    )


def training_images(data: str, prepared: str) -> Mixture:
    """Images of all three sets that are for training; half of what is drawn is of Flickr8k."""
    pairs = Folder(os.path.join(data, "flickr8k_1k"), where=(("split", "train"),))
    coco = Folder(os.path.join(prepared, "coco"))
    return Mixture(((pairs, 5.0), (coco, 2.0), *named_images(data)))


def guards(data: str, every: int) -> tuple[Retrieval, ZeroShot]:
    """Scores that no arm should lose."""
    val = (("split", "val"),)
    pairs = Folder(os.path.join(data, "flickr8k_1k"), where=val)
    things = os.path.join(data, "caltech101_20")
    labelled = Folder(things, captions="labels.jsonl", where=val, template="{name}")
    return (
        Retrieval(source=pairs, name="flickr8k", every=every, max_num_patches=PATCHES),
        ZeroShot(source=labelled, name="caltech101", every=every, max_num_patches=PATCHES),
    )


def patch_measures(data: str, prepared: str) -> tuple[FrozenProbes, CocoPatches, OpenVocabulary]:
    """Scores of patches, that the arms are about."""
    maps = os.path.join(prepared, "maps")
    legend = read_json(os.path.join(maps, "legend.json"))
    return (
        FrozenProbes(data=data, every=AT_THE_END, max_num_patches=FINE),
        CocoPatches(folder=os.path.join(data, "coco_mini"), every=AT_THE_END, max_num_patches=FINE),
        OpenVocabulary(
            pairs=tuple((image, os.path.join(maps, label)) for image, label in legend["pairs"]),
            classes=tuple(legend["classes"]),
            name="coco",
            every=AT_THE_END,
            max_num_patches=FINE,
        ),
    )


def config(
    data: str = "",
    prepared: str = "",
    arm: str = "",
    base: str = "",
    steps: int = 1000,
) -> TrainConfig:
    """One run.

    Args:
      data: the directory with the data sets.
      prepared: what `scripts/evidence.py` has made of them.
      arm: one of `ARMS`; empty is the base model.
      base: workdir of the base model, for an arm.
      steps: of the run.
    """
    if arm and arm not in ARMS:
        raise ValueError(f"arm is {arm!r}; there are {', '.join(ARMS)}, and empty for the base")
    crops = (RandomResizedCrop((0.3, 1.0)), HorizontalFlip())
    stage = Stage(
        name="main",
        steps=steps,
        batch_size=BATCH,
        data=Data(source=training_images(data, prepared), transforms=(Shrink(256), *crops)),
        lengths=Lengths(budgets=(PATCHES,), batch_scale=()),
        objectives={"sigmoid": Sigmoid()},
        optim=Optim(peak_lr=LR, schedule=Schedule(kind="constant", warmup=200)),
        evals=guards(data, every=500),
    )
    if arm:
        falling = Schedule(kind="constant", cooldown=steps)
        stage = replace(
            stage,
            name=arm,
            start=Continue(workdir=base),
            optim=replace(stage.optim, schedule=falling),
            evals=(*guards(data, AT_THE_END), *patch_measures(data, prepared)),
        )
    head = {"prototypes": 1024, "hidden": 256, "bottleneck": 64}
    distilled = {"self_distill": SelfDistill(weight=0.25, **head)}
    masked = {"masked": MaskedPrediction(weight=0.0625, **head)}
    every_patch = {"masked": MaskedPrediction(weight=0.0625, ratio=0.75, targets="all", **head)}
    added = {
        "ssl": distilled | masked,
        "self_distill": distilled,
        "masked": masked,
        "ibot": distilled | every_patch,
    }.get(arm)
    if added:
        views = SelfSupervisedViews(global_size=128, local_size=48, local_views=4)
        stage = replace(
            stage,
            data=replace(stage.data, transforms=(Shrink(256), views, *crops)),
            objectives=stage.objectives | added,
            optim=replace(stage.optim, ema=0.99),
        )
    if arm == "boxes":
        targets = DecoderTargets(str(TOKENIZER), length=SENTENCE)
        stage = replace(
            stage,
            data=replace(stage.data, transforms=(*stage.data.transforms, targets)),
            objectives=stage.objectives | {"caption": Captioning(depth=2, length=SENTENCE)},
        )
    return TrainConfig(
        model=model(),
        stages=(stage,),
        tokenizer=str(TOKENIZER),
        compute=Compute(scan=False),
        checkpoints=Checkpoints(every=250, keep_last=1),
        logging=Logging(every=50),
    )
