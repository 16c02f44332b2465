"""Checks before the first step that the loss is as expected and that `b` fits the batch size.

The sigmoid loss learns in `b` how rare a match is: one in the batch size. A model released at a
batch of 32,768 that is trained on with 512 starts with a bias that is far too low, and its first
updates are spent (and its towers damaged) on moving it, as public threads on fine-tuning report.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from siglip2_jax.objectives.sigmoid import sigmoid_loss
from siglip2_jax.sharding import split_batch
from siglip2_jax.train.state import TrainState
from siglip2_jax.train.step import Program
from siglip2_jax.types import Batch

SHIFTS = np.arange(-12, 12.25, 0.5, dtype=np.float32)
TOLERANCE = 1.5


@dataclasses.dataclass(frozen=True)
class Preflight:
    """Report of the first batch on the state that a stage starts from.

    Attributes:
      loss: the sigmoid loss at step 0.
      orthogonal: the loss if every cosine were 0, as in a fresh model of large width.
      uninformed: the loss of a model that knows only the batch size: `log n + 1`, nearly.
      bias: `b`.
      best_bias: the `b` that would fit this batch best, all else equal.
      batch_size: n.
    """

    loss: float
    orthogonal: float
    uninformed: float
    bias: float
    best_bias: float
    batch_size: int

    def explain(self, fresh: bool) -> str:
        """One line for the log; `fresh` for a model that was not trained before."""
        line = f"pre-flight: sigmoid loss {self.loss:.3f} at step 0 with batch {self.batch_size}"
        if fresh:
            return f"{line}, {self.orthogonal:.3f} expected of a fresh model"
        return f"{line}, a trained model stays below {self.uninformed:.3f}"

    def warning(self, fresh: bool, released: bool = True) -> str | None:
        """Warns of a trained model whose `b` is meant for another batch size; None if all is well.

        Args:
          fresh: the model was not trained before.
          released: it comes from outside the run, so that the stage's start can shift `b`.
        """
        if fresh or abs(self.best_bias - self.bias) < TOLERANCE:
            return None
        return (
            f"b is {self.bias:.2f}, which fits another batch size than {self.batch_size}: this "
            f"batch is fit best at {self.best_bias:.1f}; "
            + (
                f"re-centre it by adding {self.best_bias - self.bias:.1f} to Pretrained.bias_shift"
                if released
                else "the first steps will move it"
            )
        )


def preflight(program: Program, state: TrainState, batch: Batch) -> Preflight:
    """Embeds one batch and tries other biases on it; to be called under the mesh.

    Where a stage curates, as many examples of the super-batch as it trains on count.
    """

    size = batch.text.shape[0]
    parts = size // program.batch_size(size)
    n = size // parts

    @jax.jit
    def losses(params, batch: Batch, shifts: jax.Array):
        image, text = (split_batch(x, parts)[0] for x in program.embed(params, batch))
        t, b = params["t"], params["b"]
        return jax.lax.map(lambda shift: sigmoid_loss(image, text, t, b + shift), shifts), b

    values, b = losses(state.params, batch, jnp.asarray(SHIFTS))
    values, bias = np.asarray(values, np.float64), float(b)
    return Preflight(
        loss=float(values[np.flatnonzero(SHIFTS == 0)[0]]),
        orthogonal=_softplus(-bias) + (n - 1) * _softplus(bias),
        uninformed=math.log(n) + (n - 1) * math.log(n / (n - 1)) if n > 1 else 0.0,
        bias=bias,
        best_bias=bias + float(SHIFTS[np.argmin(values)]),
        batch_size=n,
    )


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
