"""Inputs of a stage: its pipeline, the schedule of its steps, and the shapes of its batches."""

from __future__ import annotations

import jax
from jax.sharding import NamedSharding

from siglip2_jax.config import ResolvedStage, TrainConfig
from siglip2_jax.data.collate import blank_row
from siglip2_jax.data.lengths import StepSchedule
from siglip2_jax.data.pipeline import Pipeline
from siglip2_jax.data.prepare import Prepare
from siglip2_jax.data.workers.machine import worker_count
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.preprocess.tokenizer import Tokenizer
from siglip2_jax.types import Batch


def open_tokenizer(config: TrainConfig) -> Tokenizer:
    """The tokenizer of a run, checked against the model's token table."""
    text = config.model.text
    tokenizer = Tokenizer.load(
        config.tokenizer,
        text_norm=config.preprocessing.text_norm,
        length=text.length,
        pad_id=text.pad_id,
    )
    tokenizer.check(text.vocab_size)
    return tokenizer


def image_preprocessor(stage: ResolvedStage) -> ImagePreprocessor:
    """Image preprocessor of a stage."""
    return ImagePreprocessor(
        patch_size=stage.model.vision.patch_size,
        image_size=stage.model.vision.image_size,
        mode=stage.preprocessing.mode,
        resample=stage.preprocessing.resample,
    )


def stage_reading(stage: ResolvedStage, step: int = 0, position: int = 0) -> StepSchedule:
    """Budgets and batch sizes of a stage's steps, from `step` and the data's `position` on."""
    return stage.lengths.reading(
        stage.data_seed, stage.num_steps, stage.read_size, step=step, position=position
    )


def pixel_dtype(stage: ResolvedStage) -> str:
    """The dtype in which patches travel: that of the towers, which cast them before all else.

    Steps are the same, bit for bit, and in bfloat16 half as much travels. Objectives that read
    pixels themselves get them in float32.
    """
    read = any(objective.reads_pixels for objective in stage.objectives.values())
    return "float32" if read else stage.compute.dtype


def stage_pipeline(stage: ResolvedStage, tokenizer: Tokenizer) -> Pipeline:
    """This process's part of a stage's data."""
    data = stage.data
    prepare = Prepare(
        preprocess=image_preprocessor(stage),
        tokenizer=tokenizer,
        transforms=data.transforms,
        aspect=stage.lengths.aspect,
        scaled_decode=data.scaled_decode,
        pixels=pixel_dtype(stage),
    )
    return Pipeline(
        source=data.source,
        prepare=prepare,
        seed=stage.data_seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=worker_count(data.workers),
        threads=data.threads,
        prefetch=data.prefetch,
        max_bad_share=data.max_bad_share,
        shuffle=data.shuffle,
        cache=data.cache,
        patience=data.patience,
    )


def abstract_batch(
    stage: ResolvedStage, budget: int, batch_size: int, sharding: NamedSharding | None = None
) -> Batch:
    """Shapes of the global batch of a step; reads no data.

    Args:
      stage: what it is a step of.
      budget: its token budget in this step.
      batch_size: examples that the step reads, over all devices.
      sharding: how they are split.
    """
    row = blank_row(
        image_preprocessor(stage),
        stage.model.text.length,
        stage.data.transforms,
        budget,
        pixel_dtype(stage),
    )
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype, sharding=sharding),
        row,
    )


def check_batches(config: TrainConfig, devices: int) -> None:
    """Checks that every batch of a run can be dealt to the devices.

    Raises:
      ValueError: one cannot.
    """
    for stage in config.resolved:
        unit = devices * stage.optim.accumulate
        for budget in stage.lengths.budgets:
            for size in {stage.batch_size, stage.read_size}:
                size = stage.lengths.batch_size(budget, size)
                if size % unit:
                    raise ValueError(
                        f"stage {stage.name!r}: the batch of {size} at {budget} patches cannot be "
                        f"dealt to {devices} devices x {stage.optim.accumulate} microbatches; "
                        f"choose a batch_size that gives a multiple of {unit}"
                    )
