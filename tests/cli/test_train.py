"""`siglip2 train`: what users get wrong, in one sentence each."""

import logging
from pathlib import Path

import pytest
from train.processes import (
    LIGHT,
    ONE_LENGTH,
    corrupt_photos,
    metrics,
    numbers,
    saved_steps,
    train,
)

from siglip2_jax.cli import main

CONFIG = str(Path(__file__).parents[1] / "train" / "configs" / "light.py")


@pytest.fixture(autouse=True)
def logging_as_before():
    """The command takes over logging, with a stream that does not outlive its test."""
    root, ours = logging.getLogger(), logging.getLogger("siglip2_jax")
    handlers, level = root.handlers[:], ours.level
    yield
    root.handlers[:] = handlers
    ours.setLevel(level)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("nowhere.py",), "nowhere.py: no such file"),
        ((CONFIG, "--set", "optim.peak_ler=1"), "peak_lr"),
        ((CONFIG, "--set", "stages.main.steps=many"), "steps"),
        ((CONFIG, "--set", "batch_size=7"), "batch of 7 at"),
        ((CONFIG, "--set", "tokenizer=/nowhere/tokenizer.model"), "/nowhere/tokenizer.model"),
        ((CONFIG, "--set", "replica=3"), "cannot form 3 replicas"),
        ((CONFIG, "--num-processes", "2"), "without a coordinator"),
    ],
)
def test_mistakes_are_one_sentence(args, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = main(["train", *args, "--workdir", str(tmp_path / "run")])
    err = capsys.readouterr().err
    assert code == 2 and message in err, err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code = main(["train", CONFIG, "--workdir", str(tmp_path / "file" / "run")])
    err = capsys.readouterr().err
    assert code == 2 and "file" in err and len(err.splitlines()) == 1, err


@pytest.mark.slow
def test_a_run_compiles_once_per_length_counts_what_it_replaces_and_traces(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_LOG_COMPILES", "1")
    names = corrupt_photos(tmp_path / "photos", every=16)
    changes = ("logging.profile.start=2", "logging.profile.steps=3", "stages.main.steps=16")
    workdir = tmp_path / "run"
    (end,) = train(LIGHT, workdir, f"data.source.path={tmp_path / 'photos'}", *changes)
    assert end.code == 0, end.text
    assert end.text.count("Finished XLA compilation of jit(step)") == 2
    assert len(list(workdir.rglob("*.xplane.pb"))) == 1
    counts = [line["bad_examples"] for line in metrics(workdir)]
    assert counts == sorted(counts) and counts[-1] >= 2 * len(names)  # more than two epochs
    assert any(f"replaced by other examples: {tmp_path}" in line for line in end.text.splitlines())


@pytest.mark.slow
def test_nothing_but_corrupt_examples(tmp_path):
    corrupt_photos(tmp_path / "photos", every=1)
    change = f"data.source.path={tmp_path / 'photos'}"
    (end,) = train(LIGHT, tmp_path / "run", change, *ONE_LENGTH)
    assert end.code == 2 and "20 examples in a row could not be used" in end.text, end.text
    assert end.text.count("siglip2: error: ") == 1 and "Traceback" not in end.text


@pytest.mark.slow
def test_a_loss_that_is_no_number(tmp_path, capsys):
    workdir = tmp_path / "run"
    sets = [
        x
        for change in ("objectives.brightness.poison=4", "checkpoints.every=2", *ONE_LENGTH)
        for x in ("--set", change)
    ]
    code = main(["train", CONFIG, "--workdir", str(workdir), *sets])
    err = capsys.readouterr().err
    assert code == 2 and "Traceback" not in err, err
    sentence = err.splitlines()[-1]
    assert "the loss of step 4 is not finite (brightness is nan)" in sentence
    assert f"the last good checkpoint is step 2 in {workdir}" in sentence
    assert saved_steps(workdir) == [2] and list(numbers(workdir)) == [1, 2, 3]

    before = (workdir / "config.json").read_text()
    code = main(["train", CONFIG, "--workdir", str(workdir), "--set", "stages.main.name=other"])
    err = capsys.readouterr().err
    assert code == 2 and "belongs to stage 'main', which in this config is in stage 'other'" in err
    assert f"resume with the config {workdir / 'config.json'}, or train in" in err
    assert main(["train", CONFIG, "--workdir", str(workdir), "--set", "stages.main.steps=1"]) == 2
    assert "ends at step 1" in capsys.readouterr().err
    assert (workdir / "config.json").read_text() == before


@pytest.mark.slow
def test_what_a_run_records_trains_again(tmp_path):
    (end,) = train(LIGHT, tmp_path / "a", "stages.main.steps=6", "seed=3", *ONE_LENGTH)
    assert end.code == 0, end.text
    (end,) = train(tmp_path / "a" / "config.json", tmp_path / "b")
    assert end.code == 0, end.text
    expected = numbers(tmp_path / "a")
    assert len(expected) == 6 and numbers(tmp_path / "b") == expected
    texts = [(tmp_path / name / "config.json").read_text() for name in "ab"]
    assert texts[0] == texts[1]

    (end,) = train(tmp_path / "a" / "config.json", tmp_path / "a", "stages.main.steps=8")
    assert end.code == 0 and "resuming at step 6" in end.text, end.text
    assert len(numbers(tmp_path / "a")) == 8


@pytest.mark.slow
def test_a_state_that_is_no_number_is_not_saved(tmp_path):
    changes = ("optim.peak_lr=1e39", "checkpoints.every=1", "optim.schedule.warmup=2")
    (end,) = train(LIGHT, tmp_path / "run", *changes, *ONE_LENGTH)
    assert end.code == 2 and "Traceback" not in end.text, end.text
    assert "after step 1 the parameters" in end.text and "no checkpoint was saved" in end.text
    assert saved_steps(tmp_path / "run") == []
