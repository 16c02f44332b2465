"""A run that is killed or told to stop, and goes on as if nothing had been."""

import random
import signal

import pytest
from train.processes import (
    LIGHT,
    ONE_LENGTH,
    assert_same,
    metrics,
    numbers,
    saved,
    saved_steps,
    steps_done,
    train,
    training,
)

STOPPED = 143
LONG = "stages.main.steps=100", "checkpoints.every=10"  # of two sequence lengths


@pytest.mark.slow
def test_a_killed_run_repeats_the_steps_that_were_not_saved(tmp_path):
    """Numbers that were logged before the kill are logged again, bit by bit, on two devices."""
    workdir, steps = tmp_path / "run", (*ONE_LENGTH, "stages.main.steps=40")
    with training(LIGHT, workdir, *steps, devices=2) as run:
        run.wait_for(lambda: steps_done(workdir) >= 9 and saved_steps(workdir))
        run.kill(signal.SIGKILL)
        assert run.wait()[0].code == -signal.SIGKILL
    before, resumed = numbers(workdir), saved_steps(workdir)[-1]
    assert 5 <= resumed <= len(before)
    (end,) = train(LIGHT, workdir, *steps, devices=2)
    assert end.code == 0 and f"resuming at step {resumed}" in end.text, end.text
    after = numbers(workdir)
    assert list(after) == list(range(1, 41))
    assert {step: after[step] for step in before} == before


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("reference") / "run"
    (end,) = train(LIGHT, workdir, *LONG)
    assert end.code == 0, end.text
    assert list(numbers(workdir)) == list(range(1, 101))
    return workdir


def is_saving(workdir) -> bool:
    """True while a checkpoint is half written."""
    folder = workdir / "checkpoints"
    return folder.is_dir() and any("tmp" in path.name for path in folder.iterdir())


@pytest.mark.slow
def test_kills_at_any_moment_change_nothing(tmp_path, uninterrupted):
    """Killed after some step, killed while it saves, told to stop, and resumed each time."""
    workdir, moment = tmp_path / "run", random.randint(12, 30)
    with training(LIGHT, workdir, *LONG) as run:
        run.wait_for(lambda: steps_done(workdir) >= moment)
        run.kill(signal.SIGKILL)
        assert run.wait()[0].code == -signal.SIGKILL
    done = steps_done(workdir)
    with training(LIGHT, workdir, *LONG) as run:
        run.wait_for(lambda: steps_done(workdir) > done and is_saving(workdir))
        run.kill(signal.SIGKILL)
        assert run.wait()[0].code == -signal.SIGKILL
    done = steps_done(workdir)
    with training(LIGHT, workdir, *LONG) as run:
        run.wait_for(lambda: steps_done(workdir) > done)
        run.kill(signal.SIGTERM)
        (end,) = run.wait()
    stopped = saved_steps(workdir)[-1]
    assert end.code == STOPPED and f"step {stopped} is saved" in end.text, end.text
    assert metrics(workdir)[-1]["step"] == stopped < 100
    (end,) = train(LIGHT, workdir, *LONG)
    assert end.code == 0 and f"resuming at step {stopped}" in end.text, end.text
    assert numbers(workdir) == numbers(uninterrupted)
    assert saved_steps(workdir) == saved_steps(uninterrupted) == [80, 90, 100]
    for step in (90, 100):
        for tree in ("params", "optimizer"):
            assert_same(saved(workdir, step, tree), saved(uninterrupted, step, tree))
