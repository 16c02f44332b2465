"""The whole of SigLIP 2, B/16, with the three changes of TIPSv2 (arXiv 2604.12012).

    siglip2 train siglip2_tips --workdir /tmp/tips --set scale=1e-7
    siglip2 plan siglip2_tips --topology v5e:16x16 --stage distill
    siglip2 train siglip2_tips --workdir gs://BUCKET/siglip2_tips \
        --set data='/data/pairs/*.arrayrecord' --set tokenizer=/data/tokenizer.model

Stages, sizes and weights are those of `siglip2_b16`, so that two runs differ by the changes alone:

    section 3.3   iBOT++         the patch loss is over all patches, masked and visible
    section 3.4   head-only EMA  the average is of heads; the teacher's tower is the student's
    section 3.5   captions       alt-text in half of the draws, a short or a long description else

TIPSv2 has two image embeddings, one for alt-texts and one for descriptions; SigLIP 2 has one, which
sees each as often. TIPSv2 also hides 0.75 of the patches, where SigLIP 2 hides half.

Records need `caption_short` and `caption_long`, each a text or null, beside their captions. Below
scale 1 the shipped images have what stands for them: names of their regions, and all captions in
one.
"""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from siglip2_jax.config import Stage, TrainConfig
from siglip2_jax.data.captions import CaptionFields
from siglip2_jax.objectives.masked import MaskedPrediction
from siglip2_jax.recipes import siglip2_b16

CAPTIONS = CaptionFields((("captions", 0.5), ("caption_short", 0.25), ("caption_long", 0.25)))


@dataclasses.dataclass(frozen=True)
class Descriptions:
    """Adds two descriptions to an example that has several captions and regions; a transform."""

    scale_free: ClassVar[bool] = True

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """The example with `caption_short` and `caption_long`."""
        names = dict.fromkeys(region["phrase"] for region in example.get("regions", ()))
        long = ". ".join(caption.strip(" .") for caption in example["captions"])
        return {**example, "caption_short": " and ".join(names), "caption_long": long}


def config(
    scale: float = 1.0,
    size: str = "B",
    data: str = "",
    other_languages: str = "",
    tokenizer: str = "",
    naflex: bool | None = None,
) -> TrainConfig:
    """The stages of `siglip2_b16`, changed; arguments as there."""
    base = siglip2_b16.config(scale, size, data, other_languages, tokenizer, naflex)
    shipped = scale < 1 and not data
    first = (Descriptions(), CAPTIONS) if shipped else (CAPTIONS,)
    stages = tuple(_changed(stage, first) for stage in base.stages)
    return dataclasses.replace(base, stages=stages)


def _changed(stage: Stage, first: tuple[Any, ...]) -> Stage:
    """A stage with all that applies to it."""
    objectives = {
        name: dataclasses.replace(x, targets="all") if isinstance(x, MaskedPrediction) else x
        for name, x in stage.objectives.items()
    }
    teaches = any(x.has_teacher for x in objectives.values())
    return dataclasses.replace(
        stage,
        data=dataclasses.replace(stage.data, transforms=(*first, *stage.data.transforms)),
        objectives=objectives,
        optim=dataclasses.replace(stage.optim, ema_heads=teaches),
    )
