"""Fine-tuning a released model by low-rank adapters (LoRA), on few chips or few pairs.

    siglip2 train finetune_lora --workdir /tmp/lora \\
      --set data.source.path=/data/pairs --set tokenizer=/data/tokenizer.model
    siglip2 convert /tmp/lora /tmp/adapter --to lora
    siglip2 plan finetune_lora --topology v5e:2x4

As `finetune`, but kernels of both towers stay as they are and learn a change of rank 16 each, as
do `t` and `b`, at the same rate as there. Adapters learn at twenty times the rate of the towers
in `finetune`, for their `b` begins at zero.
"""

import dataclasses
from typing import Literal

from siglip2_jax.config import Adapters, Group, TrainConfig
from siglip2_jax.recipes import finetune

ENCODERS = r"(vision|text)/encoder/.*"
PEAK_LR = 2e-4


def config(size: Literal["B", "So400m"] = "B", rank: int = 16) -> TrainConfig:
    """The stage of `finetune`, with adapters of every kernel of the transformer blocks.

    Args:
      size: of the towers.
      rank: of all adapters.
    """
    base = finetune.config(size)
    (stage,) = base.stages
    (logits,) = stage.optim.groups
    rate = stage.optim.peak_lr * logits.lr_scale
    optim = dataclasses.replace(
        stage.optim,
        peak_lr=PEAK_LR,
        groups=(Group(pattern=logits.pattern, lr_scale=rate / PEAK_LR),),
    )
    adapters = (Adapters(pattern=ENCODERS, rank=rank),)
    stage = dataclasses.replace(stage, optim=optim, adapters=adapters)
    return dataclasses.replace(base, stages=(stage,))
