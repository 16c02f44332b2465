"""Everything that a run would stop at later is refused before anything compiles, in every stage."""

import dataclasses
import json
import logging
import shutil

import jax
import pytest
from train.processes import LIGHT, ONE_LENGTH, train
from train.runs import SMALL, run, save_run, stage

from siglip2_jax.config import Continue, Curation, Data, Pretrained
from siglip2_jax.data.sources import Folder, Mixture
from siglip2_jax.demo import HERE, TOKENIZER
from siglip2_jax.evals.retrieval import Retrieval
from siglip2_jax.inference.embedder import Embedder
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.preprocess.tokenizer import Tokenizer
from siglip2_jax.sharding import make_mesh
from siglip2_jax.testing import random_params
from siglip2_jax.train.loop import StageRun
from siglip2_jax.train.loop import train as train_here
from siglip2_jax.train.run import Run

SHIPPED = Folder(str(HERE), captions="examples.jsonl", images="photos")
NO_IMAGES = dataclasses.replace(SHIPPED, images="nowhere")
GOOD = dataclasses.replace(stage("good", batch_size=16), data=Data(source=SHIPPED))
WIDE = dataclasses.replace(SMALL, text=dataclasses.replace(SMALL.text, mlp_dim=48))


def wrong(**fields):
    """A stage that continues the good one, but for these fields."""
    return dataclasses.replace(GOOD, name="wrong", start=Continue(), **fields)


def starting(source):
    return dataclasses.replace(wrong(), start=source)


@pytest.fixture
def reached(monkeypatch):
    """Names of the stages that began."""
    names = []

    def begin(self):
        names.append(self._stage.name)
        return True

    monkeypatch.setattr(StageRun, "run", begin)
    return names


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A model in a file, and the workdir of a run."""
    folder = tmp_path_factory.mktemp("stored")
    tokenizer = Tokenizer.load(TOKENIZER)
    Embedder(SMALL, random_params(SMALL), ImagePreprocessor(16, None), tokenizer).save(
        folder / "model.npz", "npz"
    )
    save_run(folder / "run", run(stage()), [10], make_mesh(1))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("second", "message"),
    [
        (wrong(data=Data(source=Folder("/nowhere"))), "/nowhere/captions.jsonl: no such file"),
        (wrong(data=Data(source=NO_IMAGES)), "/nowhere/.*: there is no such file; put it back"),
        (
            wrong(data=Data(source=Mixture(((SHIPPED, 1.0), (NO_IMAGES, 0.001))))),
            "/nowhere/.*: there is no such file; put it back",
        ),
        (wrong(evals=(Retrieval(source=Folder("/gone"), name="x"),)), "/gone/captions.jsonl: no"),
        (wrong(evals=(Retrieval(source=NO_IMAGES, name="x"),)), "no such file"),
        (wrong(model=WIDE), "^text/encoder.* in stage 'good' and .*take the sizes of the model"),
        (starting(Pretrained(source="/gone/model.npz")), "there is no file or directory '/gone/"),
        (starting(Pretrained(source="{}/model.npz", parts=("vison/.*",))), "match none of the"),
        (starting(Continue(workdir="/gone")), "/gone is no run to continue"),
        (starting(Continue(workdir="{}/run", step=9)), "holds no step 9; it holds 10"),
        (
            wrong(curation=Curation(teacher=Pretrained(source="/gone/x.npz"), chunks=2)),
            "there is no",
        ),
    ],
    ids=lambda x: None if isinstance(x, str) else "",
)
def test_the_second_stage_is_refused_before_the_first_compiles(
    second, message, stored, tmp_path, reached, caplog
):
    start = second.start
    for field in ("source", "workdir"):
        if value := getattr(start, field, None):
            start = dataclasses.replace(start, **{field: value.format(stored)})
    second = dataclasses.replace(second, start=start)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        with pytest.raises((ValueError, OSError), match=message):
            train_here(run(GOOD, second), tmp_path / "run")
    assert "Finished XLA compilation" not in caplog.text and not reached
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_what_lacks_nothing_begins(stored, tmp_path, reached):
    """The config is recorded; a stage may start from what an earlier one has yet to make."""
    fits = [
        wrong(evals=(Retrieval(source=SHIPPED, name="x"),)),
        dataclasses.replace(starting(Pretrained(source=f"{stored}/model.npz")), name="npz"),
        dataclasses.replace(starting(Continue(workdir=f"{stored}/run")), name="run"),
    ]
    assert train_here(run(GOOD, *fits), tmp_path / "run")
    assert reached == ["good", "wrong", "npz", "run"]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["stages"]


def test_memory_of_batches_is_there_before_anything_compiles(
    tmp_path, reached, caplog, monkeypatch
):
    monkeypatch.setattr("siglip2_jax.train.requirements.free_memory", lambda: 200_000_000)
    large = dataclasses.replace(GOOD, batch_size=64, name="large")
    message = r"^batches that are prepared ahead need \d+ MB of memory and 200 MB are free on this "
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        with pytest.raises(ValueError, match=message + "host; lower data.prefetch .2., or give"):
            train_here(run(GOOD, large), tmp_path / "run")
    assert "Finished XLA compilation" not in caplog.text and not reached
    assert train_here(run(GOOD), tmp_path / "run")


def test_a_workdir_that_cannot_be_written(tmp_path, reached):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        train_here(run(GOOD), tmp_path / "file" / "run")
    assert not reached


def test_sources_that_have_grown(caplog):
    """Each is named, with both numbers; what early releases saved, and other parts, say nothing."""
    known = object.__new__(Run)
    known.saved = 40
    now = [("Folder('a')", 10), ("Folder('b')", 25)]
    for record in ({}, {"examples": [["moved", 10], ["Folder('b')", 25]]}):
        known.compare_sizes(record, now)
    assert not caplog.messages
    known.compare_sizes({"examples": [["Folder('a')", 10], ["Folder('b')", 20]]}, now)
    (line,) = caplog.messages
    assert line.startswith("Folder('b') has 25 examples and had 20 when step 40 was saved")


@pytest.mark.slow
def test_a_run_whose_data_has_grown_says_so(tmp_path):
    shutil.copytree(HERE, tmp_path / "data")
    rows = tmp_path / "data" / "examples.jsonl"
    lines = rows.read_text().splitlines(keepends=True)
    rows.write_text("".join(lines[:-5]))
    path, warmup = f"data.source.path={tmp_path / 'data'}", "optim.schedule.warmup=0.1"
    change = (*ONE_LENGTH, path, warmup)
    (end,) = train(LIGHT, tmp_path / "run", *change, "stages.main.steps=5")
    assert end.code == 0 and "had" not in end.text, end.text
    rows.write_text("".join(lines))
    (end,) = train(LIGHT, tmp_path / "run", *change, "stages.main.steps=6")
    numbers = f"has {len(lines)} examples and had {len(lines) - 5} when step 5 was saved"
    assert end.code == 0 and numbers in end.text, end.text
