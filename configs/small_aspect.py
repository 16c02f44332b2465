"""Runs of a comparison: native aspect ratio against squares, on photos whose shape matters.

    siglip2 train configs/small_aspect.py --workdir W --set data=DIR --set arm=native

`scripts/evidence_aspect.py` trains all of them and writes the report. docs/evidence_aspect.md has
the design. Both arms see the same strips of photos at the same budget of patches:

- square: every strip is squashed to a square, in training and in validation.
- native: strips keep their shape up to whole patches.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Any

import numpy as np
from PIL import Image
from small_evidence import AT_THE_END, BATCH, LR, PATCHES, model, named_images

from siglip2_jax.config import (
    Checkpoints,
    Data,
    Logging,
    Optim,
    Schedule,
    Stage,
    TrainConfig,
)
from siglip2_jax.data.augment import HorizontalFlip, RandomResizedCrop
from siglip2_jax.data.lengths import Lengths
from siglip2_jax.data.prepare import Transform
from siglip2_jax.data.sources import Examples, Folder, Mixture, Source
from siglip2_jax.demo import TOKENIZER
from siglip2_jax.evals.retrieval import Retrieval
from siglip2_jax.evals.zero_shot import ZeroShot
from siglip2_jax.models.compute import Compute
from siglip2_jax.objectives.sigmoid import Sigmoid
from siglip2_jax.preprocess.decode import decode

ARMS = ("square", "native")
SIDE = 128  # pixels of a square of 64 patches of 16
LONGEST = 4.0
BINS = {"whole": None, "1to1": 1.0, "2to1": 2.0, "4to1": LONGEST}
"""Longer over shorter side of the strips that are measured; None is the photo as it is."""


@dataclass(frozen=True)
class Strip:
    """Cuts the largest strip of some shape out of the centre, along the longer side of a photo.

    A photo that is wide gives a panorama, one that is tall a tall strip; a square one counts as
    wide. So as much of a photo is left as a strip of that shape can hold.

    Attributes:
      elongation: smallest and largest ratio of the strip's longer to its shorter side, at least 1;
        the logarithm is uniform between.
    """

    elongation: tuple[float, float]

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """The example with its image cut; sides are rounded to whole pixels, at least one."""
        image: Image.Image = example["image"]
        low, high = map(log, self.elongation)
        width, height = strip_size(image.size, exp(rng.uniform(low, high)))
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return {**example, "image": image.crop((left, top, left + width, top + height))}


def strip_size(size: tuple[int, int], elongation: float) -> tuple[int, int]:
    """Width and height of the largest strip within an image of some width and height."""
    longer, shorter = max(size), min(size)
    if longer < elongation * shorter:
        shorter = max(1, round(longer / elongation))
    else:
        longer = round(shorter * elongation)
    return (longer, shorter) if size[0] >= size[1] else (shorter, longer)


@dataclass(frozen=True)
class Squash:
    """Resizes an image to a square, by the antialiased bilinear filter; its shape is lost.

    Attributes:
      side: of the square, in pixels.
    """

    side: int

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """The example with its image resized."""
        size = (self.side, self.side)
        return {**example, "image": example["image"].resize(size, Image.Resampling.BILINEAR)}


@dataclass(frozen=True)
class Changed:
    """Examples of a source with their images changed, to be measured.

    Attributes:
      source: where they come from.
      transforms: without randomness, in this order.
    """

    source: Source
    transforms: tuple[Transform, ...]

    def open(self) -> Examples:
        """Opens the source."""
        return _Changed(self.source.open(), self.transforms)


class _Changed:
    def __init__(self, examples: Examples, transforms: Sequence[Transform]) -> None:
        self._examples, self._transforms = examples, transforms

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        example, rng = self._examples[index], np.random.default_rng(0)
        example = {**example, "image": decode(example["image"], name=example["name"])}
        for transform in self._transforms:
            example = transform(example, rng)
        return example


def measures(data: str, arm: str) -> tuple[Retrieval | ZeroShot, ...]:
    """Retrieval and zero-shot classification in every bin, of validation images."""
    val = (("split", "val"),)
    pairs = Folder(os.path.join(data, "flickr8k_1k"), where=val)
    things = os.path.join(data, "caltech101_20")
    labelled = Folder(things, captions="labels.jsonl", where=val, template="{name}")
    evaluators = []
    for name, elongation in BINS.items():
        cut = (Strip((elongation, elongation)),) if elongation else ()
        changes = (*cut, *shaping(arm))
        common: dict[str, Any] = {"every": AT_THE_END, "max_num_patches": PATCHES}
        images = Changed(pairs, changes)
        evaluators += [
            Retrieval(source=images, name=f"flickr8k_{name}", **common),
            ZeroShot(source=Changed(labelled, changes), name=f"caltech101_{name}", **common),
        ]
    return tuple(evaluators)


def shaping(arm: str) -> tuple[Transform, ...]:
    """The last transforms of an arm, in training and in validation."""
    return (Squash(SIDE),) if arm == "square" else ()


def config(data: str = "", arm: str = "native", steps: int = 800) -> TrainConfig:
    """One run.

    Args:
      data: the directory with the data sets.
      arm: one of `ARMS`.
      steps: of the run.
    """
    if arm not in ARMS:
        raise ValueError(f"arm is {arm!r}; there are {', '.join(ARMS)}")
    pairs = Folder(os.path.join(data, "flickr8k_1k"), where=(("split", "train"),))
    crops = (Strip((1.0, LONGEST)), RandomResizedCrop((0.5, 1.0)), HorizontalFlip())
    stage = Stage(
        name=arm,
        steps=steps,
        batch_size=BATCH,
        data=Data(
            source=Mixture(((pairs, 5.0), *named_images(data))),
            transforms=(*crops, *shaping(arm)),
        ),
        lengths=Lengths(budgets=(PATCHES,), batch_scale=()),
        objectives={"sigmoid": Sigmoid()},
        optim=Optim(peak_lr=LR, schedule=Schedule(warmup=0.1)),
        evals=measures(data, arm),
    )
    return TrainConfig(
        model=model(),
        stages=(stage,),
        tokenizer=str(TOKENIZER),
        compute=Compute(scan=False),
        checkpoints=Checkpoints(every=400, keep_last=1),
        logging=Logging(every=50),
    )
