"""Scores before the first step, of runs that start from a model from outside."""

import dataclasses
import json
import logging
import shutil
import time

import pytest

from siglip2_jax.config import Scratch
from siglip2_jax.data.pairs import Pairs
from siglip2_jax.demo import HERE
from siglip2_jax.evals.retrieval import Retrieval
from siglip2_jax.recipes import own_pairs
from siglip2_jax.testing import tiny_embedder
from siglip2_jax.train.loop import train
from siglip2_jax.watch.rules import judge
from siglip2_jax.watch.run import WatchedRun


@pytest.fixture
def run(tmp_path):
    """Two steps of the recipe on the shipped images, from a model that was never trained."""
    shutil.copytree(HERE / "photos", tmp_path / "pairs" / "images")
    shutil.copy(HERE / "examples.jsonl", tmp_path / "pairs" / "captions.jsonl")
    tiny_embedder().save(tmp_path / "base", "orbax")
    made = own_pairs.config(str(tmp_path / "pairs"), str(tmp_path / "base"), batch=8, patches=16)
    (stage,) = made.stages
    return dataclasses.replace(made, stages=(dataclasses.replace(stage, steps=2),))


def lines(workdir) -> list[dict[str, float]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_stored_model_is_measured_before_the_first_step(run, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        assert train(run, tmp_path / "run")
    before, after = lines(tmp_path / "run")
    held_out = Pairs(str(tmp_path / "pairs"), "held_out")
    scores = Retrieval(source=held_out, max_num_patches=16)(tiny_embedder())
    assert scores == {name: before[f"eval/held_out/{name}"] for name in scores}
    assert before.keys() - {"step", "time"} == {name for name in after if name.startswith("eval/")}
    assert (before["step"], after["step"]) == (0, 2)
    text = f"step 0, held_out: image_to_text@1 {scores['image_to_text@1']:.3f}"
    assert sum(text in line for line in caplog.text.splitlines()) == 1
    assert train(run, tmp_path / "run") and len(lines(tmp_path / "run")) == 2
    watched = WatchedRun(tmp_path / "run")
    assert (watched.state, watched.step, watched.last_step) == ("complete", 2, 2)
    assert [(x.step, x.before, x.kind) for x in watched.starts] == [
        (0, None, "cpu"),
        (2, "complete", "cpu"),
    ]
    assert watched.history.get("loss").values().tolist() == [after["loss"]]
    assert judge(watched, time.time()) == []


@pytest.mark.slow
def test_fresh_models_are_not(run, tmp_path):
    stage = dataclasses.replace(run.stages[0], start=Scratch())
    assert train(dataclasses.replace(run, stages=(stage,)), tmp_path / "run")
    assert [line["step"] for line in lines(tmp_path / "run")] == [2]
