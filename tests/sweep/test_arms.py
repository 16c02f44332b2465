"""Arms of a sweep: products, names, values with commas, refusals."""

import pytest

from siglip2_jax.sweep.arms import Arm, read_arms


def test_grids_are_combined_the_last_one_fastest():
    arms = read_arms(["optim.peak_lr=1e-3,3e-4", "objectives.masked.ratio=0.3, 0.5"])
    assert [arm.name for arm in arms] == [
        "peak_lr=1e-3_ratio=0.3",
        "peak_lr=1e-3_ratio=0.5",
        "peak_lr=3e-4_ratio=0.3",
        "peak_lr=3e-4_ratio=0.5",
    ]
    assert arms[1].assignments == ("optim.peak_lr=1e-3", "objectives.masked.ratio=0.5")


def test_arms_are_an_axis_beside_grids():
    arms = read_arms(["seeded=1,2"], ["usual:", "long:steps=9,optim.b1=0.8"])
    assert [arm.name for arm in arms] == [
        "usual_seeded=1",
        "usual_seeded=2",
        "long_seeded=1",
        "long_seeded=2",
    ]
    assert arms[3].assignments == ("steps=9", "optim.b1=0.8", "seeded=2")
    assert read_arms() == [Arm("usual")]


@pytest.mark.parametrize(
    ("grids", "names"),
    [
        (["lengths.budgets=(16,),(16, 32)"], ["budgets=16", "budgets=16-32"]),
        (["data.source.path='/a,b','/c'"], ["path=-a-b", "path=-c"]),
        (["x.shift=-1,1"], ["shift=-1", "shift=1"]),
        (["a.main.steps=1", "a.tail.steps=2"], ["main.steps=1_tail.steps=2"]),
        (["steps=1", "a.steps=2"], ["steps=1_a.steps=2"]),
    ],
)
def test_names_are_short_and_tell_apart(grids, names):
    assert [arm.name for arm in read_arms(grids)] == names


@pytest.mark.parametrize(
    ("grids", "arms", "message"),
    [
        (["steps"], [], "--grid 'steps' is no grid; expected PATH=VALUE,VALUE"),
        (["steps=1,,2"], [], "is no grid"),
        (["steps=1,2,1"], [], "--grid steps=1,2,1 gives the value '1' twice"),
        (["path=/a/b,/a-b"], [], "gives the directory 'path=-a-b' twice"),
        ([], ["steps=1"], "--arm 'steps=1' has no name"),
        ([], ["../up:steps=1"], "--arm '../up:steps=1' has no name"),
        ([], ["a:steps=1", "a:"], "--arm gives the name 'a' twice"),
        ([], ["programs:"], "'programs' cannot name a directory of the sweep"),
        ([f"path={'x' * 300}"], [], "it has 305 characters"),
    ],
)
def test_malformed_options_are_refused(grids, arms, message):
    with pytest.raises(ValueError) as error:
        read_arms(grids, arms)
    assert message in str(error.value)
