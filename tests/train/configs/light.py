"""`small.py` with a loss that XLA compiles at once: it needs neither tower."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp

from siglip2_jax.config import TrainConfig, load_config
from siglip2_jax.objectives.base import Objective


@dataclasses.dataclass(frozen=True)
class Brightness(Objective):
    """A line from the mean pixel to the mean token id, by `t` and `b`; NaN from `poison` on."""

    weight: float = 1.0
    poison: int | None = None
    reads_pixels: bool = True

    def loss(self, head, view):
        t, b, image = view.student.t[...], view.student.b[...], view.batch.image
        bright = (image.pixels.mean(-1) * image.valid).sum(1) / image.valid.sum(1)
        error = jnp.square(t * bright + b - 0.01 * view.batch.text.mean(1)).mean()
        if self.poison is not None:
            error = jnp.where(view.step + 1 >= self.poison, jnp.nan, error)
        return error, {}


def config() -> TrainConfig:
    """The same stage with the other loss."""
    run = load_config(Path(__file__).with_name("small.py"))
    (stage,) = run.stages
    objectives = {"brightness": Brightness(), "digest": stage.objectives["digest"]}
    stage = dataclasses.replace(stage, objectives=objectives)
    return dataclasses.replace(run, stages=(stage,))
