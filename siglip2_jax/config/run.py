"""A whole training run: model, stages, and what is kept and shown of it."""

from __future__ import annotations

import dataclasses
import functools

from siglip2_jax.checkpoints.checkpoint import Preprocessing
from siglip2_jax.config.checks import at_least
from siglip2_jax.config.stage import ResolvedStage, Stage
from siglip2_jax.config.start import Continue, Pretrained, Scratch
from siglip2_jax.data.lengths import Lengths
from siglip2_jax.data.prepare import check_scaled_decode
from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """Rules for saving the state and for keeping checkpoints; ends of stages are always kept.

    Attributes:
      every: steps between checkpoints.
      keep_last: how many of the newest are kept.
      keep_every: also keep those whose step is a multiple of this.
    """

    every: int = 1000
    keep_last: int = 3
    keep_every: int | None = None

    def __post_init__(self) -> None:
        at_least(self, 1, "every", "keep_last", "keep_every")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """A trace of some steps, for `xprof`.

    Attributes:
      start: the first traced step of the run.
      steps: how many are traced.
    """

    start: int = 10
    steps: int = 5

    def __post_init__(self) -> None:
        at_least(self, 0, "start")
        at_least(self, 1, "steps")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logging:
    """Logging of a run, beyond its JSON lines.

    Attributes:
      every: steps between lines.
      tensorboard: write TensorBoard's event files too.
      wandb_project: log to this project of Weights & Biases too.
      profile: what to trace; None traces nothing.
    """

    every: int = 50
    tensorboard: bool = False
    wandb_project: str | None = None
    profile: Profile | None = None

    def __post_init__(self) -> None:
        at_least(self, 1, "every")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a training run, except where it is stored and what it runs on.

    A config is a Python module with a function `config()` that returns one of these.

    Attributes:
      model: sizes; a stage may have others.
      stages: run one after the other.
      tokenizer: path of the tokenizer file, or of a directory with one.
      preprocessing: how images and texts are prepared; stored with the model.
      compute: how the model runs; a stage may run otherwise.
      replica: the mesh's first dimension, over which parameters are repeated; the other devices
        share the parameters between them. None repeats them as often as lets at most 16 share
        them (see `sharding.make_mesh`), on any number of devices.
      checkpoints: what is saved.
      logging: what is shown.
      seed: of all randomness, at least 0.
    """

    model: ModelConfig
    stages: tuple[Stage, ...]
    tokenizer: str
    preprocessing: Preprocessing = Preprocessing()
    compute: Compute = Compute()
    replica: int | None = None
    checkpoints: Checkpoints = Checkpoints()
    logging: Logging = Logging()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.replica is not None:
            at_least(self, 1, "replica")
        at_least(self, 0, "seed")
        if not self.stages:
            raise ValueError("a run needs at least one stage")
        names = [stage.name for stage in self.stages]
        for index, stage in enumerate(self.stages):
            earlier = names[:index]
            if stage.name in earlier:
                raise ValueError(f"two stages are called {stage.name!r}; names must be unique")
            for source in stage.sources:
                _check_start(stage, source, earlier)
        for stage in self.resolved:
            _check_steps(stage)
            _check_decode(stage)

    @functools.cached_property
    def resolved(self) -> tuple[ResolvedStage, ...]:
        """The stages with everything that they take from the run."""
        stages: list[ResolvedStage] = []
        for stage in self.stages:
            fields = {x.name: getattr(stage, x.name) for x in dataclasses.fields(Stage)}
            model = stage.model or self.model
            fields |= {"model": model, "compute": stage.compute or self.compute}
            fields |= {"lengths": _lengths(stage, model), "preprocessing": self.preprocessing}
            first_step = stages[-1].end if stages else 0
            index = len(stages)
            stages.append(
                ResolvedStage(**fields, seed=self.seed, index=index, first_step=first_step)
            )
        return tuple(stages)

    def find_stage(self, name: str) -> ResolvedStage:
        """The stage of a name, resolved.

        Raises:
          ValueError: there is none.
        """
        stages = {stage.name: stage for stage in self.resolved}
        if name not in stages:
            raise ValueError(f"there is no stage {name!r}; the config has {', '.join(stages)}")
        return stages[name]


def _lengths(stage: Stage, model: ModelConfig) -> Lengths:
    """The stage's lengths; a model of fixed resolution has one."""
    if model.native_resolution:
        return stage.lengths
    budgets = (model.vision.num_patches,)
    return dataclasses.replace(stage.lengths, budgets=budgets, shares=None, batch_scale=())


def _check_start(stage: Stage, start: Scratch | Pretrained | Continue, earlier: list[str]) -> None:
    """Checks that a stage which continues another one of this run comes after it."""
    if not isinstance(start, Continue) or start.workdir is not None:
        return
    if not earlier:
        raise ValueError(
            f"stage {stage.name!r} is the first and continues another one; set Continue.workdir to "
            "the run of that one"
        )
    if start.stage is not None and start.stage not in earlier:
        raise ValueError(
            f"stage {stage.name!r} continues {start.stage!r}, which is no earlier stage; those are "
            + ", ".join(earlier)
        )


def _check_decode(stage: ResolvedStage) -> None:
    """Checks that a scaled decode is used only where it changes next to nothing."""
    if not stage.data.scaled_decode:
        return
    antialiased = stage.preprocessing.mode == "hf" or stage.model.native_resolution
    try:
        check_scaled_decode(antialiased, stage.data.transforms)
    except ValueError as error:
        raise ValueError(f"stage {stage.name!r}: {error}") from None


def _check_steps(stage: ResolvedStage) -> None:
    """Checks that the schedule fits the stage's steps and that batches split into microbatches."""
    stage.optim.schedule.end(stage.num_steps)
    for budget in stage.lengths.budgets:
        size = stage.lengths.batch_size(budget, stage.batch_size)
        if size % stage.optim.accumulate:
            raise ValueError(
                f"stage {stage.name!r}: the batch of {size} at {budget} patches cannot be split "
                f"into {stage.optim.accumulate} microbatches; choose another batch_size or "
                "optim.accumulate"
            )
