"""Runs of a sweep: which there are, how far each is, and the command that trains it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from siglip2_jax.checkpoints import run_layout
from siglip2_jax.checkpoints.table import ConversionError
from siglip2_jax.config import TrainConfig, load_config, to_json
from siglip2_jax.data.text import read_json
from siglip2_jax.recipes import locate
from siglip2_jax.resumable import compare
from siglip2_jax.sweep.arms import PROGRAMS, Arm
from siglip2_jax.train.distributed import PREEMPTED
from siglip2_jax.train.run import CONFIG

STOPPED = (130, PREEMPTED)
"""Exit codes of a run that was told to stop: by Ctrl-C, by SIGTERM."""


class Run(NamedTuple):
    """One arm with one seed.

    Attributes:
      arm: name of its arm.
      seed: of all its randomness.
      workdir: of the run.
      arguments: of the command `siglip2` that trains it.
      steps: at its end.
    """

    arm: str
    seed: int
    workdir: epath.Path
    arguments: tuple[str, ...]
    steps: int

    @property
    def step(self) -> int:
        """The step of its newest checkpoint, 0 before the first."""
        try:
            saved = run_layout.find(self.workdir)
        except ConversionError:  # it has saved nothing yet
            return 0
        return int(saved.step.name) if saved else 0

    @property
    def is_finished(self) -> bool:
        """True once its last step is saved."""
        return self.step >= self.steps


def plan_runs(
    config: str,
    workdir: str | os.PathLike[str],
    arms: Sequence[Arm],
    seeds: Sequence[int],
    settings: Sequence[str] = (),
) -> list[Run]:
    """Every arm with every seed, all arms of a seed before the next seed.

    Makes the config of each, so that mistakes are named before any run starts; writes nothing.

    Args:
      config: a recipe's name, or what `load_config` takes.
      workdir: the runs are in `ARM/seedN` of it.
      arms: their changes apply after `settings`.
      seeds: of each arm.
      settings: changes to the config of all arms.

    Raises:
      ValueError: a change leads nowhere or sets the seed, two arms are the same, or a workdir
        belongs to another config.
      OSError: there is no such config.
    """
    root, source = epath.Path(workdir), locate(config)
    for assignment in (*settings, *(x for arm in arms for x in arm.assignments)):
        if assignment.partition("=")[0].strip() == "seed":
            raise ValueError(f"{assignment!r} sets the seed, which each run of a sweep has another")
    if (root / CONFIG).exists():
        raise ValueError(f"{root} is the workdir of a run; give the sweep a directory of its own")
    runs, names = [], {}
    for seed in seeds:
        for arm in arms:
            assignments = (*settings, *arm.assignments, f"seed={seed}")
            made = load_config(source, assignments)
            place = root / arm.name / f"seed{seed}"
            first = names.setdefault(json.dumps([seed, to_json(made)]), arm.name)
            if first != arm.name:
                raise ValueError(f"the arms {first!r} and {arm.name!r} make the same config")
            _check_config(place, made)
            arguments = ["train", config, "--workdir", str(place)]
            arguments += ["--compilation-cache", str(root / PROGRAMS)]
            arguments += [x for assignment in assignments for x in ("--set", assignment)]
            end = made.resolved[-1].end
            runs.append(Run(arm.name, seed, place, tuple(arguments), end))
    return runs


def _check_config(workdir: epath.Path, config: TrainConfig) -> None:
    """Refuses a workdir that another config has begun."""
    if (workdir / CONFIG).exists():
        before, now = (dict(_leaves(x)) for x in (read_json(workdir / CONFIG), to_json(config)))
        compare(workdir, before, now, "give the sweep another directory, or the same settings")


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Values of a JSON tree by their path, such as `stages.0.steps`."""
    if isinstance(value, Mapping):
        children = value.items()
    elif isinstance(value, list):
        children = enumerate(value)
    else:
        yield path, value
        return
    for key, child in children:
        yield from _leaves(child, f"{path}.{key}" if path else str(key))


def train_here(run: Run) -> int:
    """Trains a run in a process of its own, which gets a SIGTERM to this one; its exit code."""
    command = [sys.executable, "-m", "siglip2_jax", *run.arguments, "--no-distributed"]
    with subprocess.Popen(command) as process:
        before = signal.signal(signal.SIGTERM, lambda number, _: process.send_signal(number))
        try:
            return process.wait()
        finally:
            signal.signal(signal.SIGTERM, before)


def train_all(
    runs: Sequence[Run], show: Callable[[str], None], train: Callable[[Run], int] = train_here
) -> int:
    """Trains the runs that are not finished, one after the other.

    A run that fails does not stop those after it; one that is told to stop does.

    Args:
      runs: in order.
      show: takes a sentence on each run.
      train: trains one, and gives its exit code.

    Returns:
      0; 1 where runs failed; or the exit code of a run that was told to stop.
    """
    failed = []
    for i, run in enumerate(runs, 1):
        label = f"run {i} of {len(runs)}: {run.arm}, seed {run.seed}"
        if (step := run.step) >= run.steps:
            show(f"{label} is finished")
            continue
        show(f"{label} {f'goes on from step {step}' if step else 'starts'} in {run.workdir}")
        code = train(run)
        if code in STOPPED:
            return code
        if code:
            show(f"{label} failed with exit code {code}")
            failed.append(run)
    if failed:
        listing = ", ".join(f"{run.arm} seed {run.seed}" for run in failed)
        show(f"{len(failed)} of {len(runs)} runs failed: {listing}")
    return 1 if failed else 0
