"""Checkpoints that a stage takes parameters from: which one, and whether it fits."""

from __future__ import annotations

import logging
import os
from collections.abc import Container, Iterable, Mapping
from typing import Any

import jax
from etils import epath

from siglip2_jax.checkpoints.resize import is_resizable
from siglip2_jax.checkpoints.run_layout import FOLDER, HEADS
from siglip2_jax.config import Continue, TrainConfig
from siglip2_jax.models.low_rank import ADAPTERS, is_pair
from siglip2_jax.train.checkpoint import RunCheckpoints
from siglip2_jax.train.stage_steps import StepRange, source_step, stage_steps
from siglip2_jax.train.step import Program

log = logging.getLogger(__name__)

Shapes = Mapping[str, jax.ShapeDtypeStruct]  # of parameters, by path


def open_run(workdir: str | os.PathLike[str]) -> RunCheckpoints:
    """Opens the checkpoints of a run that exists; Orbax alone would create a missing directory.

    Raises:
      ValueError: there is none.
    """
    if not (epath.Path(workdir) / FOLDER).is_dir():
        raise ValueError(f"{os.fspath(workdir)} is no run to continue: it has no {FOLDER}/")
    return RunCheckpoints(workdir)


def find_step(
    start: Continue, program: Program, config: TrainConfig, checkpoints: RunCheckpoints
) -> int:
    """The step of the checkpoint that a stage continues from.

    Raises:
      ValueError: there is none.
    """
    steps = checkpoints.steps
    if not steps:
        raise ValueError(f"{checkpoints.directory} holds no checkpoint to continue from")
    if start.workdir is None:
        run = [span for span in stage_steps(config) if span.end <= program.stage.first_step]
    else:
        run = [StepRange(*span) for span in checkpoints.record(steps[-1])["stages"]]
    step = target = source_step(start, run)
    if start.workdir is not None and start.step is None:
        step = min(steps, key=lambda saved: abs(saved - target))  # not every step was kept
    if step != target:
        nearest = f"step {step}, the nearest to {target} that {checkpoints.directory} holds"
        log.warning("stage %r continues from %s", program.stage.name, nearest)
    if step not in steps:
        listing = ", ".join(map(str, steps))
        raise ValueError(f"{checkpoints.directory} holds no step {step}; it holds {listing}")
    return step


def whole_step(
    start: Continue, program: Program, config: TrainConfig, checkpoints: RunCheckpoints
) -> int:
    """The step that `find_step` finds, whose checkpoint is whole.

    Raises:
      ValueError: it is damaged.
    """
    step = find_step(start, program, config, checkpoints)
    if damage := checkpoints.damage(step):
        raise ValueError(
            f"stage {program.stage.name!r} continues from {checkpoints.directory / str(step)}, "
            f"which is damaged ({damage}); there are the steps "
            + ", ".join(map(str, checkpoints.steps))
        )
    return step


def check_shapes(saved: Mapping[str, Any], shapes: Shapes, source: str) -> None:
    """Raises ValueError where a stored parameter neither fits a stage nor can be resized to.

    Args:
      saved: what is stored, by path.
      shapes: what the stage needs.
      source: where it is stored, for the message.
    """
    for path in filter(lambda path: not is_pair(path), saved.keys() & shapes.keys()):
        old, new = tuple(saved[path].shape), tuple(shapes[path].shape)
        if old != new and not is_resizable(path, old, new):
            raise ValueError(
                f"{path} has shape {old} in {source} and {new} in this config; only the position "
                "table and the patch embedding can be resized, so take the sizes of the model from "
                "its release"
            )


def check_towers(saved: Container[str], shapes: Shapes, source: str) -> None:
    """Raises ValueError where towers of a stage have parameters that were not saved.

    Heads and adapters may begin with the stage.
    """
    begun = (f"{HEADS}/", f"{ADAPTERS}/")
    missing = [path for path in shapes if path not in saved and not path.startswith(begun)]
    if missing:
        raise ValueError(f"{source} lacks {missing[0]}; its model has other towers")


def check_teacher(stage: str, shapes: Iterable[str], params: Container[str]) -> None:
    """Raises ValueError where parameters lack some of the teacher that curates a stage."""
    if missing := sorted(path for path in shapes if path not in params):
        raise ValueError(
            f"the teacher that curates stage {stage!r} lacks {missing[0]}; give one "
            "with both towers"
        )
