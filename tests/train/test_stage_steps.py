"""Steps at which stages begin and branch off."""

import pytest

from siglip2_jax.config import Continue, Data, Scratch, Stage, TrainConfig
from siglip2_jax.data.sources import Folder
from siglip2_jax.demo import tiny_config
from siglip2_jax.objectives.sigmoid import Sigmoid
from siglip2_jax.train.stage_steps import StepRange, kept_steps, source_step, stage_steps


def run(**stages) -> TrainConfig:
    made = [
        Stage(
            name=name,
            data=Data(source=Folder("photos")),
            batch_size=8,
            steps=steps,
            objectives={"sigmoid": Sigmoid()},
            start=start,
        )
        for name, (steps, start) in stages.items()
    ]
    return TrainConfig(model=tiny_config(), stages=tuple(made), tokenizer="tokenizer.model")


BRANCHES = {
    "main": (100, Scratch()),
    "masked": (25, Continue(fraction=0.8)),
    "large": (10, Continue(stage="masked")),
    "naflex": (30, Continue(stage="main", step=90)),
}
SPANS = [StepRange("main", 0, 100), StepRange("masked", 100, 25), StepRange("large", 125, 10)]


def test_spans():
    assert stage_steps(run(**BRANCHES)) == [*SPANS, StepRange("naflex", 135, 30)]
    assert [span.end for span in SPANS] == [100, 125, 135]


@pytest.mark.parametrize(
    "start, step",
    [
        (Continue(), 135),
        (Continue(stage="main"), 100),
        (Continue(stage="masked", fraction=0.5), 112),
        (Continue(fraction=0.0), 125),
        (Continue(stage="main", fraction=0.801), 80),
        (Continue(stage="masked", step=7), 107),
    ],
)
def test_source(start, step):
    assert source_step(start, SPANS) == step


def test_no_such_stage():
    message = "no stage 'mian' to continue; there are: main, masked, large"
    with pytest.raises(ValueError, match=message):
        source_step(Continue(stage="mian"), SPANS)


def test_ends_and_branch_points_are_kept():
    assert kept_steps(run(**BRANCHES)) == {80, 90, 100, 125, 135, 165}
    elsewhere = {"only": (50, Continue(workdir="other", step=3))}
    assert kept_steps(run(**elsewhere)) == {50}
