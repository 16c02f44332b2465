"""Checks before any program compiles: the data, models and measurements of a stage are there."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

from siglip2_jax.checkpoints.run_layout import PARAMS
from siglip2_jax.config import Continue, Pretrained, Scratch, TrainConfig
from siglip2_jax.data.lengths import StepSchedule
from siglip2_jax.data.pipeline import Pipeline
from siglip2_jax.data.sources import Source
from siglip2_jax.data.workers.machine import free_memory
from siglip2_jax.train.branch import (
    Shapes,
    check_shapes,
    check_teacher,
    check_towers,
    find_step,
    open_run,
)
from siglip2_jax.train.start import stored_params
from siglip2_jax.train.step import Program


def check_stage(
    program: Program, pipeline: Pipeline, config: TrainConfig, workdir: str | os.PathLike[str]
) -> None:
    """Checks that a stage can start: reads an example of each source, and no arrays.

    What it continues within the run may not be trained yet: its sizes are those of the config.

    Args:
      program: the stage.
      pipeline: its data.
      config: the run it belongs to.
      workdir: the run's own.

    Raises:
      ValueError: something is missing or does not fit.
      OSError: something is missing.
    """
    stage = program.stage
    pipeline.prepare.tokenizer.check(stage.model.text.vocab_size)
    pipeline.check(min(stage.lengths.budgets))
    for evaluator in stage.evals:
        for source in _sources(evaluator):
            source.open()[0]
    _saved(program, stage.start, program.shapes, config, workdir)
    if stage.curation is not None and program.selector is not None:
        shapes = program.selector.shapes
        saved = _saved(program, stage.curation.teacher, shapes, config, workdir)
        check_teacher(stage.name, shapes, saved)


def check_memory(pipeline: Pipeline, reading: StepSchedule) -> None:
    """Checks that there is memory for the batches that are prepared ahead.

    Raises:
      ValueError: there is not.
    """
    needed, free = pipeline.memory(reading), free_memory()
    if free is not None and needed > free:
        raise ValueError(
            f"batches that are prepared ahead need {needed / 1e6:,.0f} MB of memory and "
            f"{free / 1e6:,.0f} MB are free on this host; lower data.prefetch "
            f"({pipeline.prefetch}), or give the container more (docker run --memory, "
            "resources.limits.memory of a pod)"
        )


def _saved(
    program: Program,
    start: Scratch | Pretrained | Continue,
    shapes: Shapes,
    config: TrainConfig,
    workdir: str | os.PathLike[str],
) -> dict[str, Any]:
    """Shapes of the parameters that a stage starts from, checked to fit it."""
    if isinstance(start, Scratch):
        return {}
    if isinstance(start, Pretrained):
        return dict(stored_params(start, shapes))
    if start.workdir is None:
        earlier = config.resolved[: program.stage.index]
        name = start.stage or earlier[-1].name
        saved = Program(next(stage for stage in earlier if stage.name == name)).shapes
        source = f"stage {name!r}"
    else:
        run = open_run(start.workdir)
        step = find_step(start, program, config, run)
        saved, source = run.shapes(step, PARAMS), f"{run.directory / str(step)}"
        run.close()
    check_towers(saved, shapes, source)
    check_shapes(saved, shapes, source)
    return dict(saved)


def _sources(evaluator: Any) -> Iterator[Source]:
    """Sources among the fields of an evaluator."""
    for field in dataclasses.fields(evaluator):
        value = getattr(evaluator, field.name)
        if isinstance(value, Source):
            yield value
