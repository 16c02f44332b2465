"""What an objective is, and all that it may look at."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol, runtime_checkable

from flax import nnx
from jaxtyping import Array

from siglip2_jax.models.siglip2 import SigLIP2
from siglip2_jax.models.variants import ModelConfig
from siglip2_jax.types import Batch, Features


@dataclasses.dataclass(frozen=True)
class View:
    """What the step shows to an objective.

    Attributes:
      student: the model being trained, its parameters under differentiation.
      teacher: the moving average of the student, without gradient; None where a stage keeps none.
      features: the student's output for `batch`. For an objective that looks `across_examples`
        they belong to the global batch, and `tokens` is None where gradients are accumulated.
      batch: the inputs, images and texts in the same order; None for an objective that looks
        `across_examples` where gradients are accumulated.
      key: randomness of this step and objective, and of this part where gradients are accumulated.
      step: the number of the step within the run.
    """

    student: SigLIP2
    teacher: SigLIP2 | None
    features: Features
    batch: Batch | None
    key: Array
    step: Array


@runtime_checkable
class Objective(Protocol):
    """One term of the loss: a frozen dataclass whose fields are its hyper-parameters.

    Attributes:
      weight: what its loss is multiplied by in the sum.
      across_examples: True if examples are compared with each other (contrastive losses), so that
        accumulated gradients still need the whole batch at once; False if the loss is a mean over
        examples.
    """

    weight: float
    across_examples: bool

    def head(self, model: ModelConfig, *, rngs: nnx.Rngs) -> nnx.Module | None:
        """A module with parameters of its own, which live under `heads/<name>`; or None."""
        ...

    def loss(self, head: Any, view: View) -> tuple[Array, dict[str, Array]]:
        """The loss, a float32 scalar over the global batch, and scalars worth logging."""
        ...
