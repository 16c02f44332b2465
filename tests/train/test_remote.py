"""Runs whose workdir is a bucket, on a server that comes and goes."""

import itertools
import random
import signal
import time
from pathlib import Path

import pytest
from stores import GOOGLE
from train.processes import (
    LIGHT,
    ONE_LENGTH,
    assert_same,
    numbers,
    saved,
    train,
    training,
)

from siglip2_jax.train.distributed import FAILED, PREEMPTED

pytest.importorskip(GOOGLE)  # before the local run, which tests of a store wait for
pytestmark = pytest.mark.slow

WORKDIR = "gs://bucket/run"
STEPS = 40
RUN = (*ONE_LENGTH, f"stages.main.steps={STEPS}")
KILLS = 2
SECONDS_AWAY = 6.0
# gcsfs tries six times, in 31 to 36 seconds; the other processes end up to 12 later.
SECONDS_TO_GIVE_UP = 75.0
LETTERS = 3000  # more than a quiet run writes


@pytest.fixture
def workdir(store):
    """The files of the run in the bucket, read without a client."""
    return store.root / "bucket" / "run"


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The same run in a local directory, without interruption."""
    workdir = tmp_path_factory.mktemp("local") / "run"
    (end,) = train(LIGHT, workdir, *RUN)
    assert end.code == 0, end.text
    return workdir


def last_whole(workdir: Path) -> int:
    """The last step with a finished checkpoint, which a file in it says; 0 if there is none."""
    files = workdir.glob("checkpoints/*/commit_success.txt")
    return max((int(file.parent.name) for file in files), default=0)


def is_saving(workdir: Path) -> bool:
    """True while a checkpoint is half written, and an earlier one is whole."""
    steps = [int(path.name) for path in workdir.glob("checkpoints/*")]
    return 0 < last_whole(workdir) < max(steps, default=0)


def assert_equal_runs(workdir: Path, local: Path) -> None:
    """Every step once, with the same numbers, and the same last checkpoints, bit by bit."""
    found = numbers(workdir)
    assert list(found) == list(range(1, STEPS + 1)) and found == numbers(local)
    for step, tree in itertools.product((STEPS - 5, STEPS), ("params", "optimizer")):
        assert_same(saved(workdir, step, tree), saved(local, step, tree))


def test_kills_at_random_moments_change_nothing(tmp_path, store, workdir, local):
    """Killed shortly after the first save, twice, and resumed each time."""
    moments = random.Random(23)
    for _ in range(KILLS):
        done = last_whole(workdir)
        with training(LIGHT, WORKDIR, *RUN, logs=tmp_path) as run:
            run.wait_for(lambda done=done: last_whole(workdir) > done)
            time.sleep(moments.uniform(0, 0.3))
            run.kill(signal.SIGKILL)
            (end,) = run.wait()
            assert end.code == -signal.SIGKILL, end.text
    resumed = last_whole(workdir)
    (end,) = train(LIGHT, WORKDIR, *RUN, logs=tmp_path)
    assert end.code == 0 and f"resuming at step {resumed} of {WORKDIR}" in end.text, end.text
    assert len(end.text) < LETTERS and "Traceback" not in end.text, end.text
    assert_equal_runs(workdir, local)


def test_two_processes_stop_and_resume(tmp_path, store, workdir):
    """SIGTERM on one; both save the same step, resume, and end as one with their devices."""
    with training(LIGHT, WORKDIR, *RUN, processes=2, logs=tmp_path) as run:
        run.wait_for(lambda: last_whole(workdir) > 0)
        run.kill(signal.SIGTERM, index=1)
        ends = run.wait()
    stopped = last_whole(workdir)
    for end in ends:
        assert end.code == PREEMPTED and f"step {stopped} is saved in {WORKDIR}" in end.text, ends
    for end in train(LIGHT, WORKDIR, *RUN, processes=2, logs=tmp_path):
        assert end.code == 0 and f"resuming at step {stopped} of {WORKDIR}" in end.text, end.text
    (end,) = train(LIGHT, tmp_path / "run", *RUN, devices=2)
    assert end.code == 0, end.text
    assert_equal_runs(workdir, tmp_path / "run")


def test_a_store_that_is_away_for_seconds(tmp_path, store, workdir, local):
    """It goes while a checkpoint is half written, and the run waits for it."""
    with training(LIGHT, WORKDIR, *RUN, logs=tmp_path) as run:
        run.wait_for(lambda: is_saving(workdir))
        store.shut()
        time.sleep(SECONDS_AWAY)
        assert run.running() and last_whole(workdir) < STEPS, run.texts()
        store.open()
        (end,) = run.wait()
    assert end.code == 0 and len(end.text) < LETTERS and "Traceback" not in end.text, end.text
    assert_equal_runs(workdir, local)


def test_a_store_that_is_gone_for_good(tmp_path, store, workdir):
    """It goes while a checkpoint is half written; all processes end, and say why in a sentence."""
    forever = (*ONE_LENGTH, "stages.main.steps=1000000")
    with training(LIGHT, WORKDIR, *forever, processes=2, logs=tmp_path) as run:
        run.wait_for(lambda: is_saving(workdir))
        store.shut()
        start = time.monotonic()
        ends = run.wait()
    assert time.monotonic() - start < SECONDS_TO_GIVE_UP
    reason = f"Cannot connect to host {store.url.removeprefix('http://')} "
    way_out = "); run the same command again once it can: training resumes from the last checkpoint"
    for end in ends:
        assert end.code == FAILED and len(end.text) < LETTERS, end.text
        assert "Traceback" not in end.text, end.text
        (sentence,) = (x for x in end.text.splitlines() if x.startswith("siglip2: error:"))
        assert f"{WORKDIR} cannot be read or written" in sentence, end.text
        assert reason in sentence and way_out in sentence, end.text
