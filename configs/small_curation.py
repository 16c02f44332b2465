"""Runs of a comparison: what does curation do on data of which 30 % have another's captions?

    siglip2 train configs/small_curation.py --workdir W --set data=DIR --set prepared=OUT \
        --set arm=base

`scripts/evidence_curation.py` prepares OUT, trains all of them and writes the report.
docs/evidence_curation.md has the design. Half of Flickr8k's training images are the teacher's, the
other half are the student's.

- base: the student before it sees the noisy pairs; it has learned from caltech101_20 and coco_mini.
- teacher: twice as wide, trained on its clean half of Flickr8k too.
- informed_teacher: the teacher, trained further on the student's images with their right captions.
- uniform: the base model goes on with the noisy pairs, drawn uniformly.
- curated: each step reads twice as many, of which curation with the teacher chooses half.
- informed: the same with the teacher that knows the right captions.
- clean: uniform draws from those of the student's pairs that are not noise.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from jax import Array
from small_evidence import AT_THE_END, BATCH, LR, PATCHES, guards, model, named_images

from siglip2_jax.config import (
    Checkpoints,
    Continue,
    Curation,
    Data,
    Logging,
    Optim,
    Schedule,
    Scratch,
    Stage,
    TrainConfig,
)
from siglip2_jax.data.augment import HorizontalFlip, RandomResizedCrop, Shrink
from siglip2_jax.data.lengths import Lengths
from siglip2_jax.data.mismatched import FIELD, MarkMismatched, Mismatched
from siglip2_jax.data.sources import Folder, Mixture, Source
from siglip2_jax.demo import TOKENIZER
from siglip2_jax.models.compute import Compute
from siglip2_jax.objectives.base import View
from siglip2_jax.objectives.sigmoid import Sigmoid

NOISE = 0.3
STUDENT, TEACHER = 64, 128  # widths
ARMS = ("uniform", "curated", "informed", "clean")
TEACHERS = {"curated": "teacher", "informed": "informed_teacher"}
MODELS = ("base", "teacher", "informed_teacher")


@dataclass(frozen=True)
class CountingSigmoid(Sigmoid):
    """The sigmoid loss, which reports the share of clean pairs in the batch that it sees."""

    def loss(self, head: None, view: View) -> tuple[Array, dict[str, Array]]:
        """The loss, and `clean`, from 0 to 1, beside what `Sigmoid` reports."""
        loss, report = super().loss(head, view)
        assert view.batch is not None  # gradients are not accumulated
        return loss, report | {"clean": 1 - view.batch.fields[FIELD].mean()}


def captioned(prepared: str, *where: tuple[str, Any]) -> Folder:
    """Training images of Flickr8k, with their right captions."""
    return Folder(os.path.join(prepared, "flickr8k"), where=where)


def noisy(prepared: str) -> Mismatched:
    """The student's images of Flickr8k, of which 30 % have each other's captions."""
    return Mismatched(captioned(prepared, ("part", "student")), share=NOISE)


def source_of(arm: str, data: str, prepared: str) -> Source | Mixture:
    """Data that a run reads."""
    if arm == "clean":
        return captioned(prepared, ("part", "student"), ("exchanged", False))
    if arm in ARMS:
        return noisy(prepared)
    coco = Folder(
        os.path.join(data, "coco_mini"), captions="annotations.jsonl", where=(("split", "train"),)
    )
    others = ((coco, 2.0), *named_images(data))
    if arm == "base":
        return Mixture(others)
    right = captioned(prepared, *([("part", "teacher")] if arm == "teacher" else []))
    return Mixture(((right, 5.0), *others))


def config(
    data: str = "", prepared: str = "", arm: str = "uniform", runs: str = "", steps: int = 400
) -> TrainConfig:
    """One run.

    Args:
      data: the directory with the data sets.
      prepared: what `scripts/evidence_curation.py` has made of them.
      arm: one of `MODELS` or `ARMS`.
      runs: the directory with the workdirs of `MODELS`, for those that start from one.
      steps: of the run.
    """
    if arm not in (*MODELS, *ARMS):
        raise ValueError(f"arm is {arm!r}; there are {', '.join((*MODELS, *ARMS))}")

    def end_of(name: str) -> Continue:
        return Continue(workdir=os.path.join(runs, name, "seed0"))

    is_student = arm in ARMS
    origin = {"base": None, "teacher": None, "informed_teacher": "teacher"}.get(arm, "base")
    falling = Schedule(kind="constant", cooldown=steps)
    crops = (RandomResizedCrop((0.3, 1.0)), HorizontalFlip())
    curation = None
    if arm in TEACHERS:
        curation = Curation(teacher=end_of(TEACHERS[arm]), model=model(TEACHER))
    stage = Stage(
        name=arm,
        steps=steps,
        batch_size=BATCH,
        start=end_of(origin) if origin else Scratch(),
        data=Data(
            source=source_of(arm, data, prepared),
            transforms=(Shrink(256), *crops, *([MarkMismatched()] if is_student else [])),
        ),
        lengths=Lengths(budgets=(PATCHES,), batch_scale=()),
        objectives={"sigmoid": CountingSigmoid() if is_student else Sigmoid()},
        optim=Optim(peak_lr=LR, schedule=falling if origin else Schedule(warmup=0.1)),
        curation=curation,
        evals=guards(data, every=AT_THE_END),
    )
    return TrainConfig(
        model=model(STUDENT if is_student or arm == "base" else TEACHER),
        stages=(stage,),
        tokenizer=str(TOKENIZER),
        compute=Compute(scan=False),
        checkpoints=Checkpoints(every=200, keep_last=1),
        logging=Logging(every=1 if is_student else 50),
    )
