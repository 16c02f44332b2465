"""One stage of a run: its data, its start, its losses, its length."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Literal

import numpy as np

from siglip2_jax.checkpoints.checkpoint import Preprocessing
from siglip2_jax.config.adapters import Adapters
from siglip2_jax.config.checks import at_least
from siglip2_jax.config.curation import Curation
from siglip2_jax.config.optim import Optim
from siglip2_jax.config.start import Continue, Pretrained, Scratch
from siglip2_jax.data.blocks.shuffle import BlockShuffle
from siglip2_jax.data.lengths import Lengths
from siglip2_jax.data.patience import PATIENCE
from siglip2_jax.data.prepare import Transform
from siglip2_jax.data.sources import Mixture, Source
from siglip2_jax.evals.base import Evaluator
from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import ModelConfig
from siglip2_jax.objectives.base import Objective

NAME = re.compile(r"[A-Za-z_][\w-]*")  # never a number, so that overrides can tell


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Data of a stage, and how it is read.

    Attributes:
      source: where examples come from.
      transforms: what is done to an example before the standard preprocessing, in order.
      workers: processes that prepare batches; 0 prepares them in the training process, "auto" takes
        one for each core of the host but one (0 on hosts of one or two).
      threads: threads that read examples, per process.
      prefetch: batches that are ready ahead of the step.
      max_bad_share: the share of unusable examples that is tolerated, 0 to 1; each is replaced.
      shuffle: draw examples in random order, another one each epoch. True draws them one by one,
        unless a source is in an object store: then, and wherever it is given, `BlockShuffle` says
        how whole blocks of examples are drawn.
      cache: a local directory for blocks of examples that are read ahead of their use; None holds
        them in memory.
      patience: seconds that reading goes on trying what may pass, such as an error of a network
        disk; then the run stops.
      scaled_decode: decode JPEGs that are several times larger than what the model reads at a
        fraction of their size, which is faster and changes images slightly (`data.prepare.Prepare`
        says how much). For antialiased resizes, without crops or views; evaluation never does it.
    """

    source: Source | Mixture
    transforms: tuple[Transform, ...] = ()
    workers: int | Literal["auto"] = 0
    threads: int = 2
    prefetch: int = 2
    max_bad_share: float = 0.05
    shuffle: bool | BlockShuffle = True
    cache: str | None = None
    patience: float = PATIENCE
    scaled_decode: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.workers, str) and self.workers != "auto":
            raise ValueError(f'Data.workers is {self.workers!r}; it is a number or "auto"')
        at_least(self, 0, *([] if self.workers == "auto" else ["workers"]))
        at_least(self, 0, "max_bad_share", "patience")
        at_least(self, 1, "threads", "prefetch")
        if self.cache is not None and "://" in self.cache:
            raise ValueError(f"Data.cache is {self.cache}; give a local directory, or None")
        if self.max_bad_share > 1:
            raise ValueError(f"Data.max_bad_share is {self.max_bad_share}; it is a share, 0 to 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of a run with one set of losses, one optimizer and one kind of input.

    Attributes:
      name: letters, digits, "_" and "-"; unique in the run.
      data: what to read.
      batch_size: examples that a step trains on, over all devices; `lengths` may scale it.
      steps: how long the stage takes; give either this or `examples`.
      examples: how long it takes, as the number of examples it trains on.
      lengths: for native-resolution models, the number of patches of each step's images.
      objectives: losses (`siglip2_jax.objectives.base.Objective`) by name; the parameters of one's
        own live under `heads/<name>`.
      optim: how parameters are updated.
      adapters: low-rank changes of kernels to learn. With any, parameters of the towers, `t` and
        `b` learn only where a group of `optim` that is not frozen matches them.
      start: the parameters to start from.
      model: sizes in this stage, where image or patch size change; None is the run's.
      compute: how the model runs in this stage; None is the run's.
      curation: which of the examples that are read to train on; None takes all.
      evals: evaluators to run during the stage.
    """

    name: str
    data: Data
    batch_size: int
    steps: int | None = None
    examples: int | None = None
    lengths: Lengths = Lengths()
    objectives: Mapping[str, Objective]
    optim: Optim = Optim()
    adapters: tuple[Adapters, ...] = ()
    start: Scratch | Pretrained | Continue = Scratch()
    model: ModelConfig | None = None
    compute: Compute | None = None
    curation: Curation | None = None
    evals: tuple[Evaluator, ...] = ()

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(
                f"a stage cannot be called {self.name!r}; names are made of letters, digits, _ and "
                "-, and begin with a letter"
            )
        at_least(self, 1, "batch_size", "steps", "examples")
        if (self.steps is None) == (self.examples is None):
            raise ValueError(
                f"stage {self.name!r} needs either steps or examples; set the other one to None"
            )
        if self.batch_size % self.optim.accumulate:
            raise ValueError(
                f"stage {self.name!r}: a batch of {self.batch_size} cannot be split into "
                f"{self.optim.accumulate} microbatches; optim.accumulate must divide batch_size"
            )
        if not self.objectives:
            raise ValueError(f"stage {self.name!r} has no objectives; give at least one loss")
        for name in self.objectives:
            if not NAME.fullmatch(name):
                raise ValueError(
                    f"stage {self.name!r}: an objective cannot be called {name!r}; names are made "
                    "of letters, digits, _ and -, and begin with a letter"
                )

    @property
    def read_size(self) -> int:
        """Examples that a step reads, of which curation chooses `batch_size`."""
        if self.curation is None:
            return self.batch_size
        return self.curation.read_size(self.batch_size)

    @property
    def sources(self) -> tuple[Scratch | Pretrained | Continue, ...]:
        """All that the stage reads parameters from: its start, and the teacher that curates."""
        return (self.start, *([self.curation.teacher] if self.curation else []))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedStage(Stage):
    """A stage with everything that it takes from its run; `TrainConfig.resolved` makes them.

    Attributes:
      model: sizes in this stage.
      compute: how the model runs in this stage.
      lengths: at fixed resolution the one that there is.
      preprocessing: how images and texts are prepared.
      seed: of all randomness of the run.
      index: number of the stage within the run, from 0.
      first_step: number of the stage's first step within the run.
    """

    model: ModelConfig = dataclasses.field()  # without Stage's default
    compute: Compute = dataclasses.field()
    preprocessing: Preprocessing
    seed: int
    index: int
    first_step: int

    @property
    def num_steps(self) -> int:
        """Number of steps of the stage, at least 1."""
        if self.steps is not None:
            return self.steps
        assert self.examples is not None  # either is given
        scales = [self.lengths.scale(budget) for budget in self.lengths.budgets]
        steps = self.examples / (self.batch_size * float(self.lengths.probabilities @ scales))
        return math.ceil(round(steps, 6))  # a whole number stays one despite rounding errors

    @property
    def end(self) -> int:
        """The step of the run after the stage's last."""
        return self.first_step + self.num_steps

    @property
    def least_memory(self) -> str:
        """Options with which a step of this stage needs less memory, the cheapest that is left."""
        stage, options = f"stages.{self.name}", []
        if self.compute.remat != "full":
            options.append(f"--set {stage}.compute.remat=full")
        if self.compute.remat_up_to:
            options.append(f"--set '{stage}.compute.remat_up_to=()'")
        parts = 2 * self.optim.accumulate
        return " ".join(options) or f"--set {stage}.optim.accumulate={parts}"

    @property
    def data_seed(self) -> int:
        """The seed of the stage's data and lengths; stages do not repeat each other's order."""
        return int(np.random.SeedSequence((self.seed, self.index)).generate_state(1)[0])
