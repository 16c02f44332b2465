"""A run of your own, to copy and edit: a recipe with other data, batches and learning rate.

    siglip2 train configs/my_run.py --workdir gs://BUCKET/my_run
    siglip2 plan configs/my_run.py --topology v5e:2x4

A recipe is a function: call it and replace what should differ. Classes of your own (transforms,
sources, objectives, evaluators) can stand in this file or in modules beside it.
"""

from dataclasses import replace

from siglip2_jax.config import TrainConfig
from siglip2_jax.data.records import Records
from siglip2_jax.recipes import b16_256


def config(
    data: str = "/data/train/*.arrayrecord", tokenizer: str = "/data/tokenizer.model"
) -> TrainConfig:
    """One stage of a billion examples.

    Args:
      data: a glob of ArrayRecord files.
      tokenizer: Gemma's.
    """
    run = b16_256.config()
    (stage,) = run.stages
    stage = replace(
        stage,
        examples=1_000_000_000,
        batch_size=1024,
        data=replace(stage.data, source=Records(data)),
        optim=replace(stage.optim, peak_lr=3e-4),
    )
    return replace(run, stages=(stage,), tokenizer=tokenizer)
