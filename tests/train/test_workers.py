"""Runs with worker processes: they end in good order, whoever gets the signal."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from train.processes import (
    COMMAND,
    CONFIGS,
    LIGHT,
    ONE_LENGTH,
    metrics,
    numbers,
    saved_steps,
    started,
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


def workers_of(process: int) -> list[int]:
    """Data workers of a training process."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    commands = {int(x): Path(f"/proc/{x}/cmdline").read_bytes() for x in children}
    return [x for x, command in commands.items() if b"spawn_main" in command]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux lists the processes of a process")
def test_a_killed_worker_changes_no_number(tmp_path):
    changes = (*ONE_LENGTH, "stages.main.steps=200", "checkpoints.every=100")
    changes += ("data.workers=2", "data.prefetch=4")
    with training(LIGHT, tmp_path / "run", *changes) as run:
        run.wait_for(lambda: steps_done(tmp_path / "run") >= 3)
        os.kill(workers_of(run.popen[0].pid)[1], signal.SIGKILL)
        (end,) = run.wait()
    assert end.code == 0, end.text
    assert "data workers that were lost and started again: 1" in end.text
    (end,) = train(LIGHT, tmp_path / "alone", *changes[:-2])
    assert end.code == 0, end.text
    found, expected = numbers(tmp_path / "run"), numbers(tmp_path / "alone")
    restarts = [line.pop("data/worker_restarts") for line in found.values()]
    assert restarts[0] == 0 and restarts[-1] == 1 and restarts == sorted(restarts)
    assert {line.pop("data/worker_restarts") for line in expected.values()} == {0}
    assert found == expected


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux lists the processes of a process")
def test_a_run_whose_workers_are_killed_again_and_again_saves_first(tmp_path):
    changes = (*ONE_LENGTH, "data.workers=1", "checkpoints.every=1000000")
    workdir, killed = tmp_path / "run", set()

    def kill() -> bool:
        for worker in workers_of(run.popen[0].pid):
            if worker not in killed and steps_done(workdir) >= 3:
                os.kill(worker, signal.SIGKILL)
                killed.add(worker)
        return False

    with training(LIGHT, workdir, *changes, "stages.main.steps=100000") as run:
        run.wait_for(kill)
        (end,) = run.wait()
    assert end.code == 2 and "Traceback" not in end.text, end.text
    assert "siglip2: error: 3 data workers were lost within" in end.text
    assert "the last by SIGKILL" in end.text and len(killed) == 3
    last = metrics(workdir)[-1]["step"]
    assert saved_steps(workdir) == [last]
    assert f"the last good checkpoint is step {last} in {workdir}" in end.text


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_workers_know_the_classes_of_a_config(tmp_path, processes):
    """A source, a transform and a module beside the config: batches as without workers."""
    changes = (*ONE_LENGTH, "stages.main.steps=5", "optim.schedule.warmup=1")
    for workers in (0, 1):
        workdir, own = tmp_path / f"{workers}", (*changes, f"data.workers={workers}")
        ends = train(CONFIGS / "own.py", workdir, *own, processes=processes)
        assert all(end.code == 0 for end in ends), ends
    alone, with_worker = numbers(tmp_path / "0"), numbers(tmp_path / "1")
    assert len(alone) == 5 and alone == with_worker


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs a mount of its own")
def test_a_run_needs_no_more_dev_shm_than_containers_have(tmp_path):
    """64 MB, where the buffers of three batches take 300 MB."""
    mount = "mount -t tmpfs -o size=64m tmpfs /dev/shm && df /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("mounting needs a privilege that is not there")
    changes = ["lengths.budgets=(64,)", "stages.main.batch_size=512", "stages.main.steps=3"]
    changes += ["data.workers=4", "optim.schedule.warmup=1"]
    sets = [x for change in changes for x in ("--set", change)]
    train_it = [sys.executable, "-c", COMMAND, "train", str(LIGHT), "--workdir", tmp_path / "run"]
    within = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh", *map(str, train_it)]
    command = f"import os; os.execvp('unshare', {[*within, *sets]!r})"
    with started(tmp_path, [["-c", command]], devices=1) as run:
        (end,) = run.wait()
    assert end.code == 0 and " 65536 " in end.text and "stage main: 3/3" in end.text, end.text
