"""A training run in its workdir: what stages share, and what is kept of them."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
from etils import epath
from jaxtyping import Array, Bool

from siglip2_jax.config import TrainConfig, to_json
from siglip2_jax.convert.orbax import describe
from siglip2_jax.outputs import write_whole
from siglip2_jax.sharding import make_mesh
from siglip2_jax.train.checkpoint import RunCheckpoints
from siglip2_jax.train.distributed import StopSignal
from siglip2_jax.train.inputs import check_batches, open_tokenizer
from siglip2_jax.train.metrics import MetricWriter
from siglip2_jax.train.spans import Span, kept_steps, spans
from siglip2_jax.train.state import TrainState
from siglip2_jax.train.trace import Trace

CONFIG = "config.json"


class Run:
    """A training run in its workdir.

    Attributes:
      config: the run.
      workdir: where it lives.
      mesh: all devices.
      spans: the steps of each stage.
      tokenizer: what makes ids of captions.
      kept: steps that are saved, and kept, in any case.
      checkpoints: what was saved.
      saved: the last step that was saved, 0 before the first.
      writer: where numbers go, on process 0.
      trace: the profiler.
      signal: SIGTERM.
    """

    def __init__(self, config: TrainConfig, workdir: epath.Path):
        self.config, self.workdir = config, workdir
        self.mesh = make_mesh(config.replica)
        self.spans = spans(config)
        self.tokenizer = open_tokenizer(config)
        check_batches(config, self.mesh.size)
        self.kept = kept_steps(config)
        self.checkpoints = RunCheckpoints(workdir, config.checkpoints, self.kept)
        self.saved = self.checkpoints.latest or 0
        self._check_stage()
        self.writer = None
        if jax.process_index() == 0:
            self._record()
            self.writer = MetricWriter(workdir, config.logging, to_json(config), self.saved)
        self.trace = Trace(config.logging.profile, workdir)
        self.signal = StopSignal()

    def close(self) -> None:
        """Finishes what is being written."""
        self.signal.close()
        self.trace.close()
        self.checkpoints.close()
        if self.writer:
            self.writer.close()

    def save(self, state: TrainState, step: int, position: int, bad: int, span: Span) -> None:
        """Starts to save; nothing happens if this step is saved already.

        Raises:
          ValueError: the state is not finite.
        """
        if step == self.saved:
            return
        if not _all_finite(state):
            raise ValueError(
                f"after step {step} the parameters or the optimizer's state are not finite, though "
                f"the loss is; {last_good(self.saved, self.workdir)}; lower optim.peak_lr or set "
                "optim.clip_norm"
            )
        model = self.config.resolved[self.spans.index(span)].model
        record = describe(model, self.config.preprocessing) | {
            "step": step,
            "stage": span.name,
            "position": position,
            "bad_examples": bad,
            "stages": [list(span) for span in self.spans],
            "config": to_json(self.config),
            "tokenizer": self.tokenizer.name,
        }
        if self.writer:
            self.writer.flush()
        self.checkpoints.save(state, step, record)
        self.saved = step

    def _check_stage(self) -> None:
        """The checkpoint to resume belongs to the stage that this config has there."""
        if not self.saved:
            return
        found = self.checkpoints.record(self.saved)["stage"]
        there = [span.name for span in self.spans if span.first < self.saved <= span.end]
        if [found] != there:
            place = f"is in stage {there[0]!r}" if there else f"ends at step {self.spans[-1].end}"
            raise ValueError(
                f"step {self.saved} of {self.workdir} belongs to stage {found!r}, which in this "
                f"config {place}; resume with the config that {CONFIG} records, or train in "
                "another workdir"
            )

    def _record(self) -> None:
        """Writes the resolved config, and the tokenizer, which `load` looks for."""
        self.workdir.mkdir(parents=True, exist_ok=True)
        write_whole(self.workdir / CONFIG, json.dumps(to_json(self.config), indent=2))
        self.tokenizer.save(self.workdir)


def last_good(saved: int, workdir: epath.Path) -> str:
    """What there is to go back to, for messages."""
    if not saved:
        return f"no checkpoint was saved before in {workdir}"
    return f"the last good checkpoint is step {saved} in {workdir}"


@jax.jit
def _all_finite(state: TrainState) -> Bool[Array, ""]:
    """Whether the state holds no infinity and no NaN."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state)]).all()
