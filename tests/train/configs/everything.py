"""All losses at once, then curated batches: the recipe of SigLIP 2 in two tiny stages."""

import dataclasses
from pathlib import Path

from siglip2_jax.config import Continue, Curation, TrainConfig, load_config
from siglip2_jax.data.lengths import Lengths
from siglip2_jax.data.targets import DecoderTargets
from siglip2_jax.data.views import SelfSupervisedViews
from siglip2_jax.demo import TOKENIZER
from siglip2_jax.objectives.caption import Captioning
from siglip2_jax.objectives.masked import MaskedPrediction
from siglip2_jax.objectives.self_distill import SelfDistill
from siglip2_jax.objectives.softmax_distill import SoftmaxDistill

LENGTH = 40  # tokens of a sentence; the shipped tokenizer takes up to 30 for a phrase and its box
HEAD = {"hidden": 32, "bottleneck": 16, "prototypes": 24}


def config() -> TrainConfig:
    """30 steps and 15; both stages keep an average, and the second one's teacher is the first."""
    run = load_config(Path(__file__).with_name("small.py"))
    (small,) = run.stages
    small = dataclasses.replace(
        small,
        lengths=Lengths(budgets=(16,), batch_scale=()),
        optim=dataclasses.replace(small.optim, ema=0.95),
    )
    views = SelfSupervisedViews(patch_size=16, global_size=64, local_size=32, local_views=2)
    main = dataclasses.replace(
        small,
        steps=30,
        data=dataclasses.replace(
            small.data, transforms=(DecoderTargets(str(TOKENIZER), length=LENGTH), views)
        ),
        objectives=small.objectives
        | {
            "caption": Captioning(length=LENGTH, chunk=100),
            "self_distill": SelfDistill(weight=0.25, **HEAD),
            "masked": MaskedPrediction(weight=0.0625, **HEAD),
        },
    )
    curated = dataclasses.replace(
        small,
        name="curated",
        steps=15,
        start=Continue(stage="main"),
        objectives=small.objectives | {"softmax_distill": SoftmaxDistill()},
        curation=Curation(teacher=Continue(stage="main"), chunks=4),
    )
    return dataclasses.replace(run, stages=(main, curated))
