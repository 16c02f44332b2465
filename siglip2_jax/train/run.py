"""A training run in its workdir: what stages share, and what is kept of them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jaxtyping import Array, Bool

from siglip2_jax.checkpoints.arrays import is_of_the_store
from siglip2_jax.checkpoints.orbax import describe
from siglip2_jax.config import Origin, ResolvedStage, TrainConfig, to_json
from siglip2_jax.config.files import to_record
from siglip2_jax.data.open_files import raise_file_limit
from siglip2_jax.errors import reason_of
from siglip2_jax.outputs import names_no_file, write_whole
from siglip2_jax.sharding import make_mesh
from siglip2_jax.train.checkpoint import RunCheckpoints
from siglip2_jax.train.inputs import check_batches, open_tokenizer
from siglip2_jax.train.metrics import EVENTS, JsonLines, MetricWriter
from siglip2_jax.train.stage_steps import kept_steps, stage_steps
from siglip2_jax.train.state import TrainState
from siglip2_jax.train.stop_signal import StopSignal
from siglip2_jax.train.trace import Trace
from siglip2_jax.train.versions import Versions, differences

CONFIG = "config.json"

log = logging.getLogger(__name__)


class StoreError(OSError):
    """Error for a workdir that cannot be read or written; the message is one sentence."""


class Run:
    """A training run in its workdir.

    Attributes:
      config: the run.
      workdir: where it lives.
      versions: of the software that trains.
      mesh: all devices.
      stage_steps: the steps of each stage.
      tokenizer: what makes ids of captions.
      kept: steps that are saved, and kept, in any case.
      checkpoints: what was saved.
      saved: the last step that was saved, 0 before the first.
      writer: where numbers go, on process 0.
      events: starts of the run, its ends and its alarms, on process 0.
      trace: the profiler.
      signal: SIGTERM.
    """

    def __init__(
        self,
        config: TrainConfig,
        workdir: epath.Path,
        versions: Versions,
    ):
        """Opens the workdir and finds the last whole checkpoint."""
        raise_file_limit()
        self.config, self.workdir, self.versions = config, workdir, versions
        self.mesh = make_mesh(config.replica)
        self.stage_steps = stage_steps(config)
        self.tokenizer = open_tokenizer(config)
        check_batches(config, self.mesh.size)
        self.kept = kept_steps(config)
        self._lost = False
        with self.storing():
            self.checkpoints = RunCheckpoints(workdir, config.checkpoints, self.kept)
            self.saved = self._newest_whole()
            if self.saved:
                record = self.checkpoints.record(self.saved)
                self._check_stage(record["stage"])
                self._compare_versions(record.get("versions", versions))  # early releases kept none
        self.writer = None
        self.events: JsonLines | None = None
        self.trace = Trace(config.logging.profile, workdir)
        self.signal = StopSignal()

    def begin(self, origin: Origin | None = None) -> None:
        """Begins to write: the resolved config and the tokenizer now, numbers later.

        Args:
          origin: what made the config.

        Raises:
          StoreError: the workdir cannot be written.
        """
        if jax.process_index() > 0:
            return
        settings = to_record(self.config, origin) | {"versions": dict(self.versions)}
        with self.storing():
            self._record(settings)
            self.writer = MetricWriter(self.workdir, self.config.logging, settings, self.saved)
            self.events = JsonLines(self.workdir / EVENTS)
        self.note(self.saved, "start", self._facts())

    def note(self, step: int, event: str, facts: Mapping[str, Any]) -> None:
        """Appends what has happened to the run to `events.jsonl`.

        Args:
          step: up to which the run is done or, at its start or end, saved.
          event: "start", "alarm" or "end".
          facts: what is known of it, as JSON has it.

        Raises:
          StoreError: the workdir cannot be written.
        """
        if self.events:
            with self.storing():
                self.events.write(step, {"event": event} | dict(facts))
                self.events.flush()

    def end(self, reason: str) -> None:
        """Notes why the run ends, unless the workdir is lost: one sentence, or "complete"."""
        if not self._lost:
            with suppress(StoreError):  # the reason itself is what matters
                self.note(self.saved, "end", {"reason": reason})

    def close(self) -> None:
        """Finishes what is being written, unless the workdir is lost."""
        self.signal.close()
        self.trace.close()
        if self._lost:
            return
        with self.storing():
            self.checkpoints.close()
            if self.writer:
                self.writer.close()

    @contextmanager
    def storing(self) -> Iterator[None]:
        """Reads or writes the workdir; an error that does not name a file names the workdir.

        Raises:
          StoreError: it cannot be read or written, though the clients of stores tried repeatedly.
        """
        try:
            yield
        except Exception as error:
            if not names_no_file(error) and not is_of_the_store(error):
                raise
            self._lost = True
            reason = reason_of(error)
            raise StoreError(
                f"{self.workdir} cannot be read or written ({reason}); "
                "run the same command again once it can: training resumes from the last checkpoint "
                "there"
            ) from error

    def save(
        self, state: TrainState, step: int, stage: ResolvedStage, data: Mapping[str, Any]
    ) -> None:
        """Starts to save; nothing happens if this step is saved already.

        Args:
          state: the state after the step.
          step: its number.
          stage: the stage it belongs to.
          data: record of how far the stage's data has been read.

        Raises:
          ValueError: the state is not finite.
          StoreError: the workdir cannot be written.
        """
        if step == self.saved:
            return
        if not _all_finite(state):
            raise ValueError(
                f"after step {step} the parameters or the optimizer's state are not finite, though "
                f"the loss is; {last_good(self.saved, self.workdir)}; lower optim.peak_lr or set "
                "optim.clip_norm"
            )
        record = describe(stage.model, self.config.preprocessing) | {
            "step": step,
            "stage": stage.name,
            **data,
            "stages": [list(span) for span in self.stage_steps],
            "config": to_json(self.config),
            "tokenizer": self.tokenizer.name,
            "versions": dict(self.versions),
        }
        with self.storing():
            if self.writer:
                self.writer.flush()
            self.checkpoints.save(state, step, record)
        self.saved = step

    def _facts(self) -> dict[str, Any]:
        """Description of this start: its stages and devices."""
        return {
            "stages": [{"name": x.name, "first": x.first, "end": x.end} for x in self.stage_steps],
            "save_every": self.config.checkpoints.every,
            "processes": jax.process_count(),
            "devices": jax.device_count(),
            "kind": jax.devices()[0].device_kind,
        }

    def _newest_whole(self) -> int:
        """The last step whose checkpoint is whole, 0 if there is none; later ones are set aside.

        Raises:
          ValueError: there are checkpoints, but none is whole.
        """
        damaged, newest = {}, 0
        for step in reversed(self.checkpoints.steps):
            damage = self.checkpoints.damage(step)
            if damage is None:
                newest = step
                break
            damaged[step] = damage
        if damaged and not newest:
            listing = "; ".join(f"{step}: {damage}" for step, damage in damaged.items())
            raise ValueError(
                f"{self.checkpoints.directory} holds no whole checkpoint ({listing}); put back the "
                "files of one, or train in another workdir"
            )
        for step, damage in damaged.items():
            log.warning(
                "the checkpoint of step %d is damaged (%s) and now in %s; the run goes on from the "
                "newest whole one, step %d",
                step,
                damage,
                self.checkpoints.set_aside(step),
                newest,
            )
        return newest

    def _check_stage(self, stage: str) -> None:
        """Checks that the checkpoint to resume belongs to the stage of its step in this config."""
        there = [span.name for span in self.stage_steps if span.first < self.saved <= span.end]
        if [stage] != there:
            place = (
                f"is in stage {there[0]!r}" if there else f"ends at step {self.stage_steps[-1].end}"
            )
            raise ValueError(
                f"step {self.saved} of {self.workdir} belongs to stage {stage!r}, which in this "
                f"config {place}; resume with the config {self.workdir / CONFIG}, or train in "
                "another workdir"
            )

    def _compare_versions(self, saved: Versions) -> None:
        """Warns where the checkpoint to resume was saved by other software."""
        before, now = differences(saved, self.versions)
        if before:
            log.warning(
                "step %d of %s was saved with %s; the run goes on with %s",
                self.saved,
                self.workdir,
                before,
                now,
            )

    def compare_sizes(self, record: Mapping[str, Any], sizes: list[tuple[str, int]]) -> None:
        """Warns of sources that have grown or shrunk since the checkpoint to resume was saved.

        Args:
          record: of the checkpoint.
          sizes: each source of the stage, and how many examples it has.
        """
        saved = record.get("examples", sizes)  # early releases kept none
        for (_, before), (source, now) in zip(saved, sizes, strict=False):
            if before != now:
                log.warning(
                    "%s has %d examples and had %d when step %d was saved: the run draws in "
                    "another order from here on, so that some examples of this epoch come again "
                    "and others not at all",
                    source,
                    now,
                    before,
                    self.saved,
                )

    def _record(self, settings: dict[str, Any]) -> None:
        """Writes the resolved config, and the tokenizer, which `load` looks for."""
        self.workdir.mkdir(parents=True, exist_ok=True)
        write_whole(self.workdir / CONFIG, json.dumps(settings, indent=2))
        self.tokenizer.save(self.workdir)


def last_good(saved: int, workdir: epath.Path) -> str:
    """Phrase for messages on the last good checkpoint."""
    if not saved:
        return f"no checkpoint was saved before in {workdir}"
    return f"the last good checkpoint is step {saved} in {workdir}"


@jax.jit
def _all_finite(state: TrainState) -> Bool[Array, ""]:
    """True where the state holds no infinity and no NaN."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state)]).all()
