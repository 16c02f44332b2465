"""Runs with worker processes: they end in good order, whoever gets the signal."""

import signal

import pytest
from train.processes import (
    CONFIGS,
    LIGHT,
    ONE_LENGTH,
    metrics,
    numbers,
    saved_steps,
    steps_done,
    train,
    training,
)

LONG = (*ONE_LENGTH, "stages.main.steps=100000", "data.prefetch=20")


@pytest.mark.slow
def test_a_run_frees_what_it_shared(tmp_path):
    changes = (*ONE_LENGTH, "stages.main.steps=20")
    (end,) = train(LIGHT, tmp_path / "run", "data.workers=2", *changes)
    assert end.code == 0 and "stage main: 20/20" in end.text, end.text
    assert "resource_tracker" not in end.text and "Traceback" not in end.text, end.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "to_all"),
    [(signal.SIGTERM, 143, False), (signal.SIGINT, 130, True)],
)
def test_a_signal_ends_a_run_and_its_workers(tmp_path, number, code, to_all):
    workdir = tmp_path / "run"
    with training(LIGHT, workdir, "data.workers=2", *LONG) as run:
        run.wait_for(lambda: steps_done(workdir) >= 3)
        (run.kill_all if to_all else run.kill)(number)
        (end,) = run.wait()
    assert end.code == code, end.text
    assert "resource_tracker" not in end.text and "Traceback" not in end.text, end.text
    if code == 143:
        assert saved_steps(workdir)[-1] == metrics(workdir)[-1]["step"]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_workers_know_the_classes_of_a_config(tmp_path, processes):
    """A source, a transform and a module beside the config: batches as without workers."""
    changes = (*ONE_LENGTH, "stages.main.steps=5", "optim.schedule.warmup=1")
    options = {"processes": processes, "devices": 2 // processes}
    for workers in (0, 1):
        workdir = tmp_path / f"{workers}"
        ends = train(CONFIGS / "own.py", workdir, *changes, f"data.workers={workers}", **options)
        assert all(end.code == 0 for end in ends), ends
    alone, with_worker = numbers(tmp_path / "0"), numbers(tmp_path / "1")
    assert len(alone) == 5 and alone == with_worker
