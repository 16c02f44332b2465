"""FLOPs of a step: those of the towers that run, against the compiler's count."""

import dataclasses
import logging
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train.runs import run, stage

from siglip2_jax.config import Group, Optim
from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import ModelConfig, TextConfig, VisionConfig
from siglip2_jax.models.flops import forward_flops, training_flops, vision_flops
from siglip2_jax.objectives.base import Objective, View
from siglip2_jax.objectives.caption import Captioning
from siglip2_jax.objectives.masked import MaskedPrediction
from siglip2_jax.objectives.self_distill import SelfDistill
from siglip2_jax.objectives.sigmoid import Sigmoid
from siglip2_jax.train.inputs import abstract_batch
from siglip2_jax.train.loop import StageRun
from siglip2_jax.train.step import Program

BATCH, PATCHES = 2, 64
TOWER = {"width": 256, "depth": 2, "mlp_dim": 1024, "num_heads": 4}
MODEL = ModelConfig(
    vision=VisionConfig(**TOWER, patch_size=16, grid=2, image_size=None),
    text=TextConfig(**TOWER, vocab_size=64, embed_dim=256, length=32),
)


@dataclasses.dataclass(frozen=True)
class Pull(Objective):
    """Images pulled to the origin: needs no texts and next to no FLOPs."""

    weight: float = 1.0
    towers = ("vision",)

    def loss(self, head, view: View):
        assert view.features.text is None
        return jnp.square(view.features.pooled).mean() * view.student.t[...], {}


@dataclasses.dataclass(frozen=True)
class PullBoth(Pull):
    """The same of images and texts."""

    towers = ("vision", "text")

    def loss(self, head, view: View):
        loss = jnp.square(view.features.pooled).mean() + jnp.square(view.features.text[:, 0]).mean()
        return loss * view.student.t[...], {}


def program(objective: Objective, frozen: str | None = None) -> Program:
    groups = (Group(pattern=frozen, frozen=True),) if frozen else ()
    only = stage(objectives={"only": objective}, batch_size=BATCH, optim=Optim(groups=groups))
    return Program(run(only, model=MODEL, compute=Compute(scan=False)).resolved[0])


@pytest.mark.parametrize(
    ("objective", "frozen", "expected"),
    [
        (PullBoth(), "vision/.*|text/.*", forward_flops(MODEL, PATCHES)),
        (Pull(), "vision/.*|text/.*", vision_flops(MODEL.vision, PATCHES)),
        (Pull(), "text/.*", 3 * vision_flops(MODEL.vision, PATCHES)),
        (Pull(), None, 3 * vision_flops(MODEL.vision, PATCHES)),
        (PullBoth(), None, training_flops(MODEL, PATCHES)),
    ],
    ids=["both forward", "image forward", "text frozen", "text unread", "both"],
)
@pytest.mark.slow
def test_towers_that_run_are_counted(objective, frozen, expected):
    made = program(objective, frozen)
    assert made.flops(PATCHES, BATCH) == BATCH * expected
    params = jax.eval_shape(made.init_params, jax.random.key(0))
    state = jax.eval_shape(made.init_state, params)
    step = jax.jit(made.step).lower(state, abstract_batch(made.stage, PATCHES, BATCH)).compile()
    # The compiler counts updates and elementwise work as well, and leaves out the gradient by the
    # pixels.
    parameters = sum(np.prod(made.shapes[path].shape) for path in made.trainable)
    counted = step.cost_analysis()["flops"] - 20 * parameters
    assert counted == pytest.approx(BATCH * expected, rel=0.08)


def test_towers_of_the_recipes_objectives():
    towers = {x: x.towers for x in (Sigmoid, Captioning, SelfDistill, MaskedPrediction)}
    assert towers == {
        Sigmoid: ("vision", "text"),
        Captioning: ("vision",),
        SelfDistill: ("vision",),
        MaskedPrediction: (),
    }


def test_objectives_without_flops_are_named_once(caplog):
    objectives = {"sigmoid": Sigmoid(), "pull": Pull(), "both": PullBoth()}
    made = SimpleNamespace(_program=SimpleNamespace(objectives=objectives))
    with caplog.at_level(logging.WARNING):
        StageRun._warn_if_uncounted(made)
    (record,) = caplog.records
    assert record.getMessage() == "MFU and FLOPs leave out pull, both, which define no flops"
