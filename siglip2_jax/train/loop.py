"""The training loop: stages, batches, steps, and what is shown and kept of them."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Generator

import jax
import numpy as np
from etils import epath
from jax.sharding import NamedSharding

from siglip2_jax.config import Scratch, TrainConfig, to_json
from siglip2_jax.convert.orbax import describe
from siglip2_jax.data.lengths import Reading
from siglip2_jax.data.pipeline import Loaded
from siglip2_jax.inference import Embedder
from siglip2_jax.progress import Update, progress
from siglip2_jax.sharding import BATCH, make_mesh, put_batch
from siglip2_jax.train.checkpoint import RunCheckpoints
from siglip2_jax.train.distributed import StopSignal, ending_together, total
from siglip2_jax.train.inputs import (
    abstract_batch,
    check_batches,
    image_preprocessor,
    open_tokenizer,
    stage_lengths,
    stage_pipeline,
    stage_reading,
)
from siglip2_jax.train.metrics import MetricWriter
from siglip2_jax.train.preflight import preflight
from siglip2_jax.train.spans import Span, kept_steps, spans
from siglip2_jax.train.start import abstract_state, begin
from siglip2_jax.train.state import TrainState
from siglip2_jax.train.step import Metrics, Program, without_heads
from siglip2_jax.train.throughput import Throughput

CONFIG = "config.json"
IN_FLIGHT = 2  # steps that may be under way before their losses are looked at

log = logging.getLogger(__name__)


def train(config: TrainConfig, workdir: str | os.PathLike[str]) -> bool:
    """Runs all stages, or what is left of them: a workdir with a checkpoint is resumed.

    Every process of a run calls it alike, after `distributed.join_hosts`.

    Args:
      config: the run.
      workdir: where checkpoints, `metrics.jsonl` and `config.json` go; local or `gs://`.

    Returns:
      True when the run is complete; False when SIGTERM stopped it, after saving.

    Raises:
      ValueError: something the user gave does not fit, or the loss is no number any more.
      OSError: a file is missing or cannot be written.
    """
    with ending_together():
        run = Run(config, epath.Path(workdir))
        try:
            return all(run.stage(index, span) for index, span in enumerate(run.spans))
        finally:
            run.close()


class Run:
    """A training run in its workdir."""

    def __init__(self, config: TrainConfig, workdir: epath.Path):
        self.config, self.workdir = config, workdir
        self.mesh = make_mesh(config.replica)
        self.spans = spans(config)
        self.tokenizer = open_tokenizer(config)
        check_batches(config, self.mesh.size)
        if jax.process_index() == 0:
            self._record()
        self.kept = kept_steps(config)
        self.checkpoints = RunCheckpoints(workdir, config.checkpoints, self.kept)
        self.saved = self.checkpoints.latest or 0
        self.writer = None
        if jax.process_index() == 0:
            self.writer = MetricWriter(workdir, config.logging, to_json(config), self.saved)
        self.signal = StopSignal()

    def close(self) -> None:
        """Finishes what is being written."""
        self.signal.close()
        self.checkpoints.close()
        if self.writer:
            self.writer.close()

    def stage(self, index: int, span: Span) -> bool:
        """Runs one stage, or what is left of it; False if it was told to stop."""
        if self.saved >= span.end:
            return True
        with jax.set_mesh(self.mesh):
            return StageRun(self, index, span).run()

    def save(self, state: TrainState, step: int, position: int, span: Span) -> None:
        """Starts to save; nothing happens if this step is saved already."""
        if step == self.saved:
            return
        model = self.config.resolved[self.spans.index(span)].model
        record = describe(model, self.config.preprocessing) | {
            "step": step,
            "stage": span.name,
            "position": position,
            "stages": [list(span) for span in self.spans],
            "config": to_json(self.config),
            "tokenizer": self.tokenizer.name,
        }
        self.checkpoints.save(state, step, record)
        self.saved = step

    def _record(self) -> None:
        """Writes the resolved config, and the tokenizer, which `load` looks for."""
        self.workdir.mkdir(parents=True, exist_ok=True)
        temporary = self.workdir / (CONFIG + ".tmp")
        temporary.write_text(json.dumps(to_json(self.config), indent=2))
        temporary.replace(self.workdir / CONFIG)
        self.tokenizer.save(self.workdir)


class StageRun:
    """One stage, from where it stands to its end."""

    def __init__(self, run: Run, index: int, span: Span):
        self._run, self._index, self._span = run, index, span
        self._program = Program(run.config, index)
        self._stage = self._program.stage
        self._throughput = Throughput()
        self._pending: list[tuple[int, Metrics]] = []
        self._bad = 0

    def run(self) -> bool:
        """Runs it; False if it was told to stop."""
        state, reading = self._restore()
        steps = self._compile(reading)
        pipeline = stage_pipeline(self._run.config, self._index, self._run.tokenizer)
        batches = pipeline.batches(reading)
        try:
            with progress(f"stage {self._span.name}", done=reading.step) as show:
                return self._train(state, steps, batches, show)
        finally:
            batches.close()

    def _restore(self) -> tuple[TrainState, Reading]:
        """The state and what is left to read: of a checkpoint within the stage, or its start."""
        run, span = self._run, self._span
        if run.saved <= span.first:
            state = begin(self._program, run.config, run.mesh, run.workdir)
            return state, stage_reading(run.config, self._index)
        record = run.checkpoints.record(run.saved)
        if record["stage"] != span.name:
            raise ValueError(
                f"step {run.saved} of {run.workdir} belongs to stage {record['stage']!r}, which in "
                f"this config is in stage {span.name!r}; resume with the config that "
                f"{CONFIG} records, or train in another workdir"
            )
        log.info("resuming at step %d of %s", run.saved, run.workdir)
        state = run.checkpoints.restore(run.saved, abstract_state(self._program, run.mesh))
        step, position = run.saved - span.first, record["position"]
        return state, stage_reading(run.config, self._index, step, position)

    def _compile(self, reading: Reading) -> dict[int, Callable]:
        """The step's program for each token budget still to come, before the first step."""
        state = abstract_state(self._program, self._run.mesh)
        split = NamedSharding(self._run.mesh, BATCH)
        step = jax.jit(self._program.step, donate_argnums=0)
        budgets = sorted({int(budget) for budget in reading.budgets})
        programs = {}
        with progress(f"compiling stage {self._span.name}") as show:
            for budget in budgets:
                size = stage_lengths(self._stage).batch_size(budget, self._stage.batch_size)
                batch = abstract_batch(self._stage, budget, size, split)
                programs[budget] = step.lower(state, batch).compile()
                show(len(programs), len(budgets))
        return programs

    def _train(
        self,
        state: TrainState,
        steps: dict[int, Callable],
        batches: Generator[Loaded, None, None],
        show: Update,
    ) -> bool:
        """Step after step; the order of what happens after each is deliberate."""
        run, span = self._run, self._span
        self._throughput.restart()
        for loaded in self._throughput.waiting(batches):
            batch = put_batch(loaded.batch, run.mesh)
            done = span.first + loaded.step + 1
            self._bad += loaded.bad
            if loaded.step == 0:
                self._preflight(state, batch)
            self._trace(done - 1)
            state, metrics = steps[loaded.budget](state, batch)
            size = batch.text.shape[0]
            self._throughput.count(size, self._program.flops(loaded.budget, size))
            self._pending.append((done, metrics))
            values = self._look(IN_FLIGHT)
            due = [x for x in self._stage.evals if done % x.every == 0 or done == span.end]
            if due or done % run.config.logging.every == 0 or done == span.end:
                values = self._report(state, done, due)
            show(loaded.step + 1, span.steps, _note(values))
            stopping = run.signal.should_stop(done)
            if stopping or self._save_is_due(done):
                self._look(0)
                run.save(state, done, loaded.position, span)
            if stopping:
                run.checkpoints.wait()
                log.warning("SIGTERM: step %d is saved in %s", done, run.workdir)
                return False
        return True

    def _look(self, in_flight: int) -> dict[str, float]:
        """Numbers of the newest step but `in_flight`, once all up to it are known to be finite."""
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
        good = "no checkpoint was saved before"
        if self._run.saved:
            good = f"the last good checkpoint is step {self._run.saved}"
        return (
            f"the loss of step {step} is not finite ({names or values['loss']}); {good} in "
            f"{self._run.workdir}; lower optim.peak_lr or look at the data around it"
        )

    def _report(self, state: TrainState, done: int, due: list) -> dict[str, float]:
        """Writes this step's line: losses, rates, and what evaluators say."""
        values = self._look(0) | self._throughput.report()
        values["bad_examples"] = float(total(self._bad))
        for evaluator in due:
            found = evaluator(self._embedder(state))
            values |= {f"eval/{evaluator.name}/{k}": float(v) for k, v in found.items()}
        if self._run.writer:
            self._run.writer.write(done, values)
        self._throughput.restart()
        return values

    def _embedder(self, state: TrainState) -> Embedder:
        """The model as a user would load it, on the run's mesh."""
        return Embedder(
            self._program.model,
            without_heads(state.params),
            image_preprocessor(self._run.config, self._program.model),
            self._run.tokenizer,
            mesh=self._run.mesh,
        )

    def _preflight(self, state: TrainState, batch) -> None:
        """Says what the loss is before the first step, and what it should be."""
        fresh = isinstance(self._stage.start, Scratch)
        found = preflight(self._program, state, batch)
        log.info(found.explain(fresh))
        if warning := found.warning(fresh):
            log.warning(warning)
        self._throughput.restart()

    def _trace(self, step: int) -> None:
        """Starts and stops the profiler around its window."""
        profile = self._run.config.logging.profile
        if profile is None:
            return
        if step == profile.start:
            jax.profiler.start_trace(os.fspath(self._run.workdir / "profile"))
        if step == profile.start + profile.steps:
            jax.profiler.stop_trace()

    def _save_is_due(self, step: int) -> bool:
        return step % self._run.config.checkpoints.every == 0 or step in self._run.kept


def _note(values: dict[str, float]) -> str:
    """The numbers worth a glance."""
    shown = [f"loss {values['loss']:.4g}"] if "loss" in values else []
    if "examples_per_s" in values:
        shown.append(f"{values['examples_per_s']:.1f} examples/s")
        shown.append(f"{values['examples_per_s_per_chip']:.1f} per chip")
        shown += [f"MFU {values['mfu']:.1%}"] if "mfu" in values else []
        shown.append(f"data wait {values['data_wait']:.0%}")
    return ", ".join(shown)
