"""The training loop: stages, batches, steps, metrics and checkpoints."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from siglip2_jax.checkpoints.source import absolute
from siglip2_jax.config import Origin, Pretrained, ResolvedStage, Scratch, TrainConfig
from siglip2_jax.data.lengths import StepSchedule
from siglip2_jax.data.pipeline import HostBatch
from siglip2_jax.errors import reason_of
from siglip2_jax.evals.base import Evaluator
from siglip2_jax.objectives.base import Objective
from siglip2_jax.progress import Update, progress
from siglip2_jax.sharding import BATCH, put_batch
from siglip2_jax.train.alarms import Alarms
from siglip2_jax.train.compiler import jit_step
from siglip2_jax.train.data_counts import DataCounts
from siglip2_jax.train.distributed import ending_together, meet
from siglip2_jax.train.feed import NoBatch, agreed
from siglip2_jax.train.inputs import abstract_batch, stage_pipeline, stage_reading
from siglip2_jax.train.preflight import preflight
from siglip2_jax.train.requirements import check_memory, check_stage
from siglip2_jax.train.run import Run, last_good
from siglip2_jax.train.scores import Scores
from siglip2_jax.train.start import (
    abstract_state,
    initialize_stage,
    load_teacher_params,
    warn_if_unsplit,
)
from siglip2_jax.train.startup import StartUp
from siglip2_jax.train.state import TrainState
from siglip2_jax.train.step import Metrics, Program
from siglip2_jax.train.throughput import Throughput
from siglip2_jax.train.versions import agreed_versions, in_words

IN_FLIGHT = 1  # steps that run while the next batch is placed; each has a batch on the devices

log = logging.getLogger(__name__)


def train(
    config: TrainConfig, workdir: str | os.PathLike[str], origin: Origin | None = None
) -> bool:
    """Runs all stages, or what is left of them: a workdir with a checkpoint is resumed.

    Every process of a run calls it alike, after `distributed.join_hosts`.

    Args:
      config: the run.
      workdir: where checkpoints, `metrics.jsonl` and `config.json` go; local or `gs://`.
      origin: what made the config, for `config.json`.

    Returns:
      True when the run is complete; False when SIGTERM stopped it, after saving.

    Raises:
      ValueError: something the user gave does not fit, processes run different versions, or the
        loss is no number any more.
      OSError: a file is missing or cannot be written; a `StoreError` if it is the workdir, of which
        threads may go on for a quarter of an hour to try what failed.
    """
    versions = agreed_versions()  # first: what follows may hang where they differ
    with ending_together(), closing(StartUp()) as startup:
        run = Run(config, absolute(workdir), versions)
        process, count = jax.process_index(), jax.process_count()
        log.info("process %d of %d runs %s", process, count, in_words(versions))
        try:
            with jax.set_mesh(run.mesh):
                stages = [StageRun(run, x, startup) for x in config.resolved if run.saved < x.end]
                for stage in stages:
                    stage.check()
                run.begin(origin)
                # Each is freed in turn.
                complete = all(stages.pop(0).run() for _ in range(len(stages)))
            run.end("complete" if complete else "SIGTERM")
            return complete
        except BaseException as error:
            run.end(reason_of(error))
            raise
        finally:
            run.close()


class StageRun:
    """One stage, from where it stands to its end."""

    def __init__(self, run: Run, stage: ResolvedStage, startup: StartUp):
        self._run, self._stage, self._startup = run, stage, startup
        self._program = Program(stage)
        self._pipeline = stage_pipeline(stage, run.tokenizer)
        self._throughput = Throughput()
        self._pending: list[tuple[int, Metrics]] = []
        self._scores = Scores(stage, run.tokenizer, run.mesh)
        self._alarms = Alarms(self._program.objectives, run.note)
        self._counts = DataCounts()

    def check(self) -> None:
        """Checks for errors that would stop the stage later, before anything compiles."""
        check_stage(self._program, self._pipeline, self._run.config, self._run.workdir)
        check_memory(self._pipeline, stage_reading(self._stage))

    def run(self) -> bool:
        """Runs the stage; False if a signal stopped it."""
        run = self._run
        warn_if_unsplit(self._program, run.mesh)
        self._warn_if_uncounted()
        state, reading = self._restore()
        steps = self._compile(reading)
        batches = self._pipeline.batches(reading, partial(put_batch, mesh=run.mesh))
        try:
            with progress(f"stage {self._stage.name}", done=reading.step) as show:
                return self._train(state, reading, steps, batches, show)
        finally:
            batches.close()
            self._startup.restart()

    def _warn_if_uncounted(self) -> None:
        """Names the objectives that do not say how much they compute, so that MFU is too low."""
        objectives = self._program.objectives.items()
        if names := [name for name, x in objectives if type(x).flops is Objective.flops]:
            log.warning("MFU and FLOPs leave out %s, which define no flops", ", ".join(names))

    def _restore(self) -> tuple[TrainState, StepSchedule]:
        """The state and the steps left, from a checkpoint within the stage or from its start."""
        run, stage = self._run, self._stage
        if run.saved <= stage.first_step:
            with run.storing():
                run.checkpoints.wait()  # of the stage before, which this one may continue
            state = initialize_stage(self._program, run.config, run.mesh, run.workdir)
            return state, stage_reading(stage)
        log.info("resuming at step %d of %s", run.saved, run.workdir)
        with run.storing():
            record = run.checkpoints.record(run.saved)
            state = run.checkpoints.restore(run.saved, abstract_state(self._program, run.mesh))
        self._counts.bad_before = record["bad_examples"]
        run.compare_sizes(record, self._pipeline.sizes)
        teacher = load_teacher_params(self._program, run.config, run.mesh, run.workdir)
        state = dataclasses.replace(state, teacher_params=teacher)
        step, position = run.saved - stage.first_step, record["position"]
        return state, stage_reading(stage, step, position)

    def _compile(self, reading: StepSchedule) -> dict[int, Callable]:
        """The step's program for each token budget still to come, before the first step."""
        state = abstract_state(self._program, self._run.mesh)
        split = NamedSharding(self._run.mesh, BATCH)
        step, read_size = jit_step(self._program.step), self._stage.read_size

        def lower(budget: int) -> Any:
            size = self._stage.lengths.batch_size(budget, read_size)
            return step.lower(state, abstract_batch(self._stage, budget, size, split))

        steps = ((budget, lower(budget)) for budget in reading.budgets)
        programs = self._startup.compile(self._stage.name, steps, len(reading.budgets))
        meet()
        return programs

    def _train(
        self,
        state: TrainState,
        reading: StepSchedule,
        steps: dict[int, Callable],
        batches: Generator[HostBatch, None, None],
        show: Update,
    ) -> bool:
        """Runs step after step; the order of the actions after each is deliberate."""
        run, stage = self._run, self._stage
        done, position = run.saved, reading.position
        self._throughput.restart()
        try:
            waiting = self._throughput.waiting(batches)
            for host_batch in agreed(waiting, len(reading), run.mesh):
                batch = host_batch.batch
                self._counts.add(host_batch)
                if host_batch.step == 0:
                    self._preflight(state, batch)
                    self._measure_start(state)
                run.trace.before(stage.first_step + host_batch.step, state)
                state, metrics = steps[host_batch.budget](state, batch)
                self._startup.step(stage.name, metrics)
                done, position = stage.first_step + host_batch.step + 1, host_batch.position
                size = batch.text.shape[0]
                self._throughput.count(
                    self._program.batch_size(size), self._program.flops(host_batch.budget, size)
                )
                self._pending.append((done, metrics))
                values = self._look(IN_FLIGHT)
                evaluators = [x for x in stage.evals if done % x.every == 0 or done == stage.end]
                if evaluators or done % run.config.logging.every == 0 or done == stage.end:
                    values = self._report(state, done, evaluators)
                show(host_batch.step + 1, stage.num_steps, _note(values))
                stopping = run.signal.should_stop(done)
                if stopping or self._save_is_due(done):
                    self._save(state, done, position, wait=stopping)
                if stopping:
                    log.warning("SIGTERM: step %d is saved in %s", done, run.workdir)
                    return False
        except NoBatch:
            self._save(state, done, position, wait=True)
            log.warning("the data cannot be read; %s", last_good(run.saved, run.workdir))
            raise
        return True

    def _look(self, in_flight: int) -> dict[str, float]:
        """Metrics of the newest step but `in_flight`; all losses up to it are checked."""
        values: dict[str, float] = {}
        while len(self._pending) > in_flight:
            step, metrics = self._pending.pop(0)
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            if not np.isfinite(values["loss"]):
                raise ValueError(self._not_finite(step, values))
        return values

    def _not_finite(self, step: int, values: dict[str, float]) -> str:
        losses = {k: v for k, v in values.items() if k.startswith("loss/") and not np.isfinite(v)}
        names = ", ".join(f"{name.removeprefix('loss/')} is {v}" for name, v in losses.items())
        good = last_good(self._run.saved, self._run.workdir)
        return (
            f"the loss of step {step} is not finite ({names or values['loss']}); {good}; lower "
            "optim.peak_lr or look at the data around it"
        )

    def _save(self, state: TrainState, step: int, position: int, wait: bool = False) -> None:
        """Saves the state after a step, and how far the data was read; every process at once."""
        self._look(0)
        data = {"position": position, "bad_examples": self._counts.bad()}
        self._run.save(state, step, self._stage, data | {"examples": self._pipeline.sizes})
        if wait:
            with self._run.storing():
                self._run.checkpoints.wait()

    def _report(
        self, state: TrainState, done: int, evaluators: Sequence[Evaluator]
    ) -> dict[str, float]:
        """Writes this step's line: losses, rates and the evaluators' scores."""
        values = self._look(0) | self._throughput.report() | self._counts.report()
        values |= self._scores.measure(state, done, evaluators)
        self._alarms.look(done, values)
        self._write(done, values)
        self._throughput.restart()
        return values

    def _measure_start(self, state: TrainState) -> None:
        """Writes the evaluators' scores before the first step of a run on a model from outside."""
        stage = self._stage
        if isinstance(stage.start, Pretrained) and stage.first_step == 0 and stage.evals:
            self._write(0, self._scores.measure(state, 0, stage.evals))
            self._throughput.restart()

    def _write(self, step: int, values: dict[str, float]) -> None:
        if self._run.writer:
            with self._run.storing():
                self._run.writer.write(step, values)

    def _preflight(self, state: TrainState, batch) -> None:
        """Logs the sigmoid loss before the first step, beside its expected value."""
        if not any(objective.across_examples for objective in self._program.objectives.values()):
            return
        start = self._stage.start
        fresh = isinstance(start, Scratch)
        if isinstance(start, Pretrained):  # of LiT, say, `b` is fresh
            fresh = not any(re.fullmatch(part, "b") for part in start.parts)
        result = preflight(self._program, state, batch)
        log.info(result.explain(fresh))
        if warning := result.warning(fresh, isinstance(start, Pretrained)):
            log.warning(warning)
        self._throughput.restart()

    def _save_is_due(self, step: int) -> bool:
        return step % self._run.config.checkpoints.every == 0 or step in self._run.kept


def _note(values: dict[str, float]) -> str:
    """Short note on loss and rates for the progress bar."""
    shown = [f"loss {values['loss']:.4g}"] if "loss" in values else []
    if "examples_per_s" in values:
        shown.append(f"{values['examples_per_s']:.1f} examples/s")
        shown.append(f"{values['examples_per_s_per_chip']:.1f} per chip")
        shown += [f"MFU {values['mfu']:.1%}"] if "mfu" in values else []
        shown.append(f"data wait {values['data_wait']:.0%}")
    return ", ".join(shown)
