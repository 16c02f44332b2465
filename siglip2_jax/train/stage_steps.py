"""Steps of a run that belong to each stage, and where stages branch off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from siglip2_jax.config import Continue, TrainConfig


class StepRange(NamedTuple):
    """The steps of one stage, counted over the run.

    Attributes:
      name: of the stage.
      first: its first step.
      steps: how many.
    """

    name: str
    first: int
    steps: int

    @property
    def end(self) -> int:
        """The step after its last."""
        return self.first + self.steps


def stage_steps(config: TrainConfig) -> list[StepRange]:
    """Steps of each stage of a run, in order."""
    return [StepRange(stage.name, stage.first_step, stage.num_steps) for stage in config.resolved]


def source_step(start: Continue, run: Sequence[StepRange]) -> int:
    """The step of a run from which a stage continues.

    Args:
      start: what the stage says.
      run: steps of the stages of the run it continues; of its own run, only the stages before it.

    Raises:
      ValueError: the run has no such stage.
    """
    span = run[-1]
    if start.stage is not None:
        matches = [span for span in run if span.name == start.stage]
        if not matches:
            names = ", ".join(span.name for span in run)
            raise ValueError(f"there is no stage {start.stage!r} to continue; there are: {names}")
        span = matches[0]
    if start.step is not None:
        return span.first + start.step
    fraction = 1.0 if start.fraction is None else start.fraction
    return span.first + round(fraction * span.steps)


def kept_steps(config: TrainConfig) -> set[int]:
    """Steps whose checkpoints are made and kept in any case: ends of stages, branch points."""
    run = stage_steps(config)
    kept = {span.end for span in run}
    for i, stage in enumerate(config.stages):
        for source in stage.sources:
            if isinstance(source, Continue) and source.workdir is None:
                kept.add(source_step(source, run[:i]))
    return kept
