"""Several processes train as one: same losses, same parameters, same order of examples."""

import shutil
import signal
import subprocess
import sys

import pytest
from train.processes import (
    LIGHT,
    MEASURED,
    ONE_LENGTH,
    assert_same,
    corrupt_photos,
    numbers,
    saved,
    saved_steps,
    steps_done,
    train,
    training,
)

from siglip2_jax.train.distributed import FAILED, PREEMPTED
from siglip2_jax.train.liveness import LOST, SECONDS_OF_SILENCE, Beats

# A large eps: gradients that are 0 but for rounding would otherwise give updates of any direction.
THREE = (
    *ONE_LENGTH,
    "stages.main.steps=3",
    "optim.schedule.warmup=1",
    "optim.eps=1e-3",
)


def assert_near(a: dict[int, dict[str, float]], b: dict[int, dict[str, float]]) -> None:
    """The same batches, as sets, and losses within 1e-5."""
    assert a.keys() == b.keys()
    for step in a:
        assert a[step]["digest/batch"] == b[step]["digest/batch"]
        assert a[step]["loss"] == pytest.approx(b[step]["loss"], rel=1e-5)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Photos of which every sixth is corrupt, as a change of the config."""
    folder = tmp_path_factory.mktemp("corrupt")
    corrupt_photos(folder, every=6)
    return f"data.source.path={folder}"


@pytest.fixture(scope="module")
def alone(tmp_path_factory, source):
    """Three updates in one process with one device."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    (end,) = train(MEASURED, workdir, *THREE, source)
    assert end.code == 0, end.text
    return workdir


def test_a_process_that_waits_for_others_in_vain_says_so():
    """JAX aborts it after five minutes, here at once."""
    script = (
        "import os, jax; jax.distributed.initialize = lambda *_: os.abort(); "
        "from siglip2_jax.train.distributed import join_hosts; join_hosts('host:1', 2, 1)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == LOST
    sentence = "siglip2: error: process 1 of 2 has waited at host:1 for the others in vain: one was"
    assert done.stderr.splitlines()[-1].startswith(sentence)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [(), ("replica=2", "objectives.sigmoid.implementation=ring")], ids=["dense", "ring"]
)
def test_two_processes_are_one(tmp_path, alone, source, changes):
    """Corrupt examples, which are counted over both, and measurements included."""
    workdir = tmp_path / "run"
    for end in train(MEASURED, workdir, *THREE, source, *changes, processes=2, devices=2):
        assert end.code == 0, end.text
    found, expected = numbers(workdir), numbers(alone)
    assert_near(found, expected)
    counts = [line["bad_examples"] for line in expected.values()]
    assert counts == [line["bad_examples"] for line in found.values()] and counts[-1] > 0
    recalls = {name: value for name, value in expected[3].items() if name.startswith("eval/")}
    assert len(recalls) == 6 and {name: found[3][name] for name in recalls} == recalls
    assert_same(saved(workdir, 3), saved(alone, 3), atol=1e-5)


@pytest.mark.slow
def test_sigterm_on_one_stops_both_and_the_run_goes_on(tmp_path):
    """Both save the same step; both, or one alone, resume with the same batches and losses."""
    workdir, steps = tmp_path / "run", (*ONE_LENGTH, "stages.main.steps=60", "optim.eps=1e-3")
    with training(LIGHT, workdir, *steps, processes=2) as run:
        run.wait_for(lambda: steps_done(workdir) >= 4)
        run.kill(signal.SIGTERM, index=1)
        ends = run.wait()
    stopped = saved_steps(workdir)[-1]
    assert 4 <= stopped < 60
    for end in ends:
        assert end.code == PREEMPTED and f"step {stopped} is saved" in end.text, end.text
    shutil.copytree(workdir, tmp_path / "both")
    for end in train(LIGHT, tmp_path / "both", *steps, processes=2):
        assert end.code == 0, end.text
    (end,) = train(LIGHT, workdir, *steps)
    assert end.code == 0 and f"resuming at step {stopped}" in end.text, end.text
    whole = tmp_path / "whole"
    (end,) = train(LIGHT, whole, *steps)
    assert end.code == 0, end.text
    assert_near(numbers(workdir), numbers(whole))
    assert_near(numbers(tmp_path / "both"), numbers(whole))


@pytest.mark.slow
def test_where_one_fails_all_end(tmp_path):
    """A process that cannot read its data does not leave the other waiting."""
    only = ((), ("data.source.path=/nowhere",))
    ends = train(LIGHT, tmp_path / "run", "optim.schedule.warmup=0", processes=2, only=only)
    assert [end.code for end in ends] == [FAILED, FAILED], ends
    assert all("/nowhere" in end.text for end in ends), ends
    assert all("Traceback" not in end.text for end in ends), ends


@pytest.mark.slow
def test_too_many_bad_examples_on_one_end_both(tmp_path):
    """They come in the middle of the run, after steps that both have made."""
    corrupt_photos(tmp_path / "photos", every=5)
    only = ((), (f"data.source.path={tmp_path / 'photos'}",))
    workdir, changes = tmp_path / "run", (*ONE_LENGTH, "batch_size=80", "checkpoints.every=2")
    ends = train(LIGHT, workdir, *changes, processes=2, only=only)
    assert [end.code for end in ends] == [FAILED, FAILED], ends
    for end in ends:
        assert "more than max_bad_share=5.0%" in end.text and "Traceback" not in end.text, end.text
    assert saved_steps(workdir)[-1] <= steps_done(workdir) < 10


@pytest.mark.slow
def test_both_pass_by_a_damaged_checkpoint(tmp_path):
    """Also where only one of them reads what is damaged."""
    workdir, changes = tmp_path / "run", (*ONE_LENGTH, "optim.schedule.warmup=0.1")
    for end in train(LIGHT, workdir, *changes, "stages.main.steps=10", processes=2):
        assert end.code == 0, end.text
    before = numbers(workdir)
    data = max(workdir.glob("checkpoints/10/params/ocdbt.process_*/d/*"), key=file_size)
    data.write_bytes(data.read_bytes()[: file_size(data) // 2])
    for end in train(LIGHT, workdir, *changes, "stages.main.steps=10", processes=2):
        assert end.code == 0 and "resuming at step 5" in end.text, end.text
        assert "step 10 is damaged (files of params/ are missing" in end.text, end.text
    assert saved_steps(workdir) == [5, 10] and numbers(workdir) == before
    record = workdir / "checkpoints" / "10" / "_CHECKPOINT_METADATA"
    record.write_text(record.read_text().replace('"item_handlers"', '"item_hbndlers"', 1))
    for end in train(LIGHT, workdir, *changes, "stages.main.steps=10", processes=2):
        assert end.code == 0 and "resuming at step 5" in end.text, end.text
        assert "step 10 is damaged (Orbax cannot open it)" in end.text, end.text
    assert saved_steps(workdir) == [5, 10] and numbers(workdir) == before


def file_size(path) -> int:
    return path.stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_where_one_is_killed_the_other_says_so(tmp_path, victim):
    """And ends, before JAX would abort it; the same command resumes."""
    workdir, changes = tmp_path / "run", (*ONE_LENGTH, "stages.main.steps=3000")
    with training(LIGHT, workdir, *changes, processes=2) as run:
        run.wait_for(lambda: steps_done(workdir) >= 8 and saved_steps(workdir))
        run.kill(signal.SIGKILL, index=victim)
        ends = run.wait()
    assert ends[victim].code == -signal.SIGKILL
    survivor = ends[1 - victim]
    assert survivor.code == LOST, survivor.text
    sentence = survivor.text.splitlines()[-1]
    assert sentence.startswith(f"siglip2: error: process {victim} of 2 is lost: "), survivor.text
    assert "run the same command again" in sentence and "Traceback" not in survivor.text
    resumed, last = saved_steps(workdir)[-1], steps_done(workdir) + 3
    changes = (*ONE_LENGTH, f"stages.main.steps={last}", "stages.main.optim.schedule.warmup=1")
    for end in train(LIGHT, workdir, *changes, processes=2):
        assert end.code == 0 and f"resuming at step {resumed}" in end.text, end.text


@pytest.mark.slow
def test_where_the_coordinator_hangs_the_other_says_so(tmp_path):
    """It keeps its connections, on which calls would wait for minutes."""
    workdir, changes = tmp_path / "run", (*ONE_LENGTH, "stages.main.steps=3000")
    with training(LIGHT, workdir, *changes, processes=2) as run:
        run.wait_for(lambda: steps_done(workdir) >= 3)
        run.kill(signal.SIGSTOP)
        code = run.popen[1].wait(3 * SECONDS_OF_SILENCE)
        text = run.texts()[1]
    assert code == LOST and "siglip2: error: process 0 of 2 is lost: " in text, text
    assert "Traceback" not in text


class Store(dict):
    """JAX's key-value store, in this process."""

    def key_value_set(self, key, value, allow_overwrite):
        self[key] = value

    def key_value_dir_get(self, folder):
        return [(key, value) for key, value in self.items() if key.startswith(f"{folder}/")]


def test_who_is_silent():
    """Neither those that beat, nor those that ended in good order."""
    store = Store()
    first, second, third = (Beats(store, process) for process in range(3))
    for now in range(100):
        first.beat()
        second.beat()
        if now < 20:
            third.beat()
        silent = first.silent(float(now))
        assert silent == (2 if now > 19 + SECONDS_OF_SILENCE else None)
    third.end()
    assert first.silent(100.0) is None
