"""Interface of objectives, and all that an objective may look at."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array

from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import ModelConfig
from siglip2_jax.models.siglip2 import SigLIP2
from siglip2_jax.sharding import reshape_rows
from siglip2_jax.types import Batch, Features, Patches


class Buffer(nnx.Variable):
    """A running statistic of a head: without gradient, weight decay or optimizer state.

    `Objective.loss` may assign a new value, which the step keeps. Where gradients are accumulated,
    every part starts from the same value, and the mean of what they assign is kept.
    """


@dataclasses.dataclass(frozen=True)
class Teacher:
    """The moving average of the student, without gradient.

    Attributes:
      model: the student's model, averaged, or as it is where `Optim.ema_heads` averages heads
        alone; its text tower, `t` and `b` are there only where `Optim.ema_all` averages them.
      head: this objective's head.
      batch: what the step reads.
      seen: what `features` has computed in this step, for all objectives.
    """

    model: SigLIP2
    head: Any
    batch: Batch | None
    seen: dict[str, Features]

    def features(self, field: str) -> Features:
        """Teacher's features of the views `batch.fields[field]`; rows are as in `all_views`."""
        if field not in self.seen:
            assert self.batch is not None  # whoever asks does not look across examples
            views = all_views(self.batch, field)
            self.seen[field] = jax.lax.stop_gradient(self.model.encode_image(views))
        return self.seen[field]


@dataclasses.dataclass(frozen=True)
class View:
    """View of the step: all that an objective may look at.

    Attributes:
      student: the model being trained, its parameters under differentiation.
      teacher: the moving average of the student and this objective's head; None where a stage
        keeps none, and for an objective that does not say that it `has_teacher`.
      features: the student's output for `batch`; `text` is None where no objective reads it. For an
        objective that looks `across_examples` they belong to the global batch, and `tokens` is None
        where gradients are accumulated.
      batch: the inputs, images and texts in the same order; None for an objective that looks
        `across_examples` where gradients are accumulated.
      key: randomness of this step and objective, and of this part where gradients are accumulated.
      step: the number of the step within the run.
    """

    student: SigLIP2
    teacher: Teacher | None
    features: Features
    batch: Batch | None
    key: Array
    step: Array


class Objective:
    """One term of the loss: a frozen dataclass whose fields are its hyper-parameters.

    Attributes:
      weight: what its loss is multiplied by in the sum; at 0 it is no part of the program.
      across_examples: True if examples are compared with each other (contrastive losses), so that
        accumulated gradients still need the whole batch at once; False if the loss is a mean over
        examples.
      towers: those whose output for the batch it reads in `View.features`, "vision" and "text". A
        tower that no objective reads does not run, and no FLOPs are counted for it.
      own_pass: True if it learns only from passes that it makes itself: `View.features` come to it
        without gradient, and its backward pass follows its own forward pass, so that no activations
        of other objectives are in memory meanwhile.
      has_teacher: True if it learns from the moving average of the student, which `View.teacher`
        then holds.
      reads_pixels: True if it looks at the patches themselves, not just at what the towers make of
        them: they are then float32 in batches whatever the towers compute in.
    """

    weight: float
    across_examples: bool = False
    towers: tuple[str, ...] = ("vision", "text")
    own_pass: bool = False
    has_teacher: bool = False
    reads_pixels: bool = False

    def head(self, model: ModelConfig, compute: Compute, *, rngs: nnx.Rngs) -> nnx.Module | None:
        """A module with parameters of its own, which live under `heads/<name>`; or None.

        Args:
          model: sizes of the towers.
          compute: how the towers run, and so the module.
          rngs: randomness of fresh parameters.
        """
        return None

    def loss(self, head: Any, view: View) -> tuple[Array, dict[str, Array]]:
        """The loss, a float32 scalar over the global batch, and scalars worth logging."""
        raise NotImplementedError(f"{type(self).__name__} has no loss")

    def flops(self, model: ModelConfig, batch: Batch) -> int:
        """Analytic FLOPs of a step, beyond the towers' pass over images and texts.

        Args:
          model: sizes of the towers.
          batch: a global batch, or its shapes.
        """
        return 0

    def alarms(self, report: Mapping[str, float]) -> tuple[str, ...]:
        """Sentences on what the logged scalars of `loss` show to be going wrong."""
        return ()


def all_views(batch: Batch, field: str) -> Patches:
    """The views `batch.fields[field]`, `Patches` [B, V, N, P], as [B * V, N, P].

    Views of one example follow each other, so that every device keeps its own.
    """
    return jax.tree.map(
        lambda x: reshape_rows(x, (x.shape[0] * x.shape[1], *x.shape[2:])), batch.fields[field]
    )
