"""Runs as sources: what `load` takes of a workdir, a step or an average."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from train.runs import HEADS, SMALL, numbers, run, save_run, stage

import siglip2_jax
from siglip2_jax.checkpoints import ConversionError, read, write
from siglip2_jax.checkpoints.checkpoint import Preprocessing
from siglip2_jax.cli import main
from siglip2_jax.config import Optim
from siglip2_jax.demo import TOKENIZER
from siglip2_jax.models.siglip2 import flatten
from siglip2_jax.objectives.self_distill import SelfDistill
from siglip2_jax.preprocess.tokenizer import Tokenizer
from siglip2_jax.sharding import make_mesh

STEPS = [9, 10]
LARGE = dataclasses.replace(
    SMALL, vision=dataclasses.replace(SMALL.vision, grid=28, image_size=448)
)
NAMES = Preprocessing(mode="hf", resample="bicubic", text_norm="none")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def saved(workdir):
    """Two checkpoints, written by four devices."""
    config = run(stage(), preprocessing=NAMES)
    return save_run(workdir, config, STEPS, make_mesh(1, jax.devices()[:4]))


@pytest.mark.parametrize(
    "path, step, tree",
    [
        ("", 10, "params"),
        ("checkpoints/9", 9, "params"),
        ("checkpoints/10/average", 10, "ema_params"),
    ],
)
def test_load(workdir, saved, path, step, tree):
    model = siglip2_jax.load(workdir / path)
    expected = numbers(getattr(saved[step], tree))
    found = flatten(model.params)
    assert found.keys() == expected.keys()
    for name, x in found.items():
        np.testing.assert_array_equal(x, expected[name], err_msg=name)
        assert x.dtype == np.float32
    assert model.config == SMALL and model.text_norm == "none"
    assert (model.preprocess.mode, model.preprocess.resample) == ("hf", "bicubic")
    ids = Tokenizer.load(TOKENIZER, text_norm="none", length=SMALL.text.length)(["A dog"]).ids
    np.testing.assert_array_equal(model.tokenizer(["A dog"]).ids, ids)


@pytest.mark.parametrize("path, step", [(".", 10), ("checkpoints/9", 9)])
def test_relative_path(workdir, saved, monkeypatch, path, step):
    monkeypatch.chdir(workdir)
    b = read(path).params["b"].read()
    np.testing.assert_array_equal(b, saved[step].params["b"])


@pytest.fixture(scope="module")
def two_stages(tmp_path_factory):
    """A workdir with steps 9 and 10 of stage "main", and 13 of "large", and their states."""
    path = tmp_path_factory.mktemp("two_stages")
    config = run(stage(), stage("large", steps=5, model=LARGE))
    return path, save_run(path, config, [9, 10, 13], make_mesh(1, jax.devices()[:1]))


@pytest.mark.parametrize(("name", "step", "config"), [(None, 13, LARGE), ("main", 10, SMALL)])
def test_newest_of_a_stage(two_stages, name, step, config):
    workdir, states = two_stages
    found = siglip2_jax.load(workdir, stage=name)
    assert found.config == config
    assert float(found.bias) == float(states[step].params["b"])


def test_stages_that_are_not_there(two_stages, tmp_path):
    """The sentence names those that are."""
    workdir, _ = two_stages
    none = "it holds no checkpoint of stage 'naflex'; it holds some of main, large"
    with pytest.raises(ConversionError, match=none):
        read(workdir, "naflex")
    with pytest.raises(ConversionError, match="9: .* of stage 'large'; it holds some of main$"):
        read(workdir / "checkpoints" / "9", "large")
    write(read(workdir), tmp_path / "model.npz", "npz")
    with pytest.raises(ConversionError, match="only a run's checkpoints have stages; leave the"):
        read(tmp_path / "model.npz", "main")
    with pytest.raises(ValueError, match="give stage 'main' to checkpoints.read"):
        siglip2_jax.load(read(workdir), stage="main")


def test_info_lists_what_a_workdir_holds(two_stages, capsys):
    workdir, states = two_stages

    def info(*args: str) -> str:
        assert main(["info", str(workdir), *args]) == 0
        return capsys.readouterr().out

    facts, none = json.loads(info("--json")), "none of the released sizes"
    sizes = {9: "native (NaFlex)", 10: "native (NaFlex)", 13: "448 px"}
    assert [tuple(x.values()) for x in facts["checkpoints"]] == [
        (step, "large" if step == 13 else "main", none, side) for step, side in sizes.items()
    ]
    assert facts["resolution"] == "448 px"
    lines = [line for line in info("--stage", "main").splitlines() if "checkpoints" in line]
    assert lines == [
        f"checkpoints    step {step}, stage main, variant {none}, resolution native (NaFlex)"
        for step in (9, 10)
    ]


def test_heads_are_left_out(tmp_path):
    config = run(stage(objectives=HEADS))
    save_run(tmp_path, config, [3], make_mesh(1, jax.devices()[:1]))
    assert (tmp_path / "checkpoints" / "3").is_dir()
    assert not [path for path in read(tmp_path).params if path.startswith("heads/")]


@pytest.mark.parametrize(
    "format", ["hf", *(pytest.param(x, marks=pytest.mark.slow) for x in ("orbax", "npz"))]
)
def test_convert(workdir, saved, tmp_path, format):
    """A run becomes what everyone reads, its tokenizer with it."""
    target = tmp_path / ("model.npz" if format == "npz" else "model")
    write(read(workdir), target, format)
    found, expected = read(target), numbers(saved[10].params)
    assert found.format == format and found.config == SMALL
    for path, x in expected.items():
        np.testing.assert_array_equal(found.params[path].read(), x, err_msg=path)
    assert (found.tokenizer is None) == (format == "npz")


def test_unfinished_steps_are_not_seen(workdir, saved, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    (copy / "checkpoints" / "10").rename(copy / "checkpoints" / "10.orbax-checkpoint-tmp")
    assert float(siglip2_jax.load(copy).bias) == float(saved[9].params["b"])
    shutil.rmtree(copy / "checkpoints" / "9")
    with pytest.raises(ConversionError, match="checkpoints/ holds no finished checkpoint yet"):
        read(copy)


def test_no_average(tmp_path):
    save_run(tmp_path, run(stage(optim=Optim())), [3], make_mesh(1, jax.devices()[:1]))
    with pytest.raises(OSError, match="no file or directory '.*3/average'"):
        read(tmp_path / "checkpoints" / "3" / "average")


@pytest.mark.parametrize("part", ["the vision tower", "heads"])
def test_an_average_of_a_part_is_no_model(tmp_path, part):
    objectives = {"silc": SelfDistill(weight=1.0, prototypes=4, hidden=4, bottleneck=4)}
    optim = Optim(ema=0.9, ema_heads=part == "heads")
    config = run(stage(objectives=objectives, optim=optim))
    save_run(tmp_path, config, [3], make_mesh(1, jax.devices()[:1]))
    assert read(tmp_path).config == SMALL
    message = f"3: average/ holds {part} alone, .* load params/, or train with optim.ema"
    with pytest.raises(ConversionError, match=message):
        read(tmp_path / "checkpoints" / "3" / "average")


@pytest.mark.parametrize(
    "lost, message",
    [
        ("_CHECKPOINT_METADATA", "the checkpoint is damaged ._CHECKPOINT_METADATA is missing"),
        ("params/_METADATA", "the checkpoint is damaged .params/_METADATA is missing"),
        ("params/ocdbt.process_0/d/*", "cannot be read: files of params/ are missing or damaged"),
    ],
)
def test_lost_files(workdir, saved, tmp_path, lost, message):
    """One sentence names the checkpoint, and what of it is gone."""
    shutil.copytree(workdir / "checkpoints" / "10", tmp_path / "checkpoints" / "10")
    for path in (tmp_path / "checkpoints" / "10").glob(lost):
        path.unlink()
    with pytest.raises(ConversionError, match=f"checkpoints/10: .*{message}") as error:
        [x.read() for x in read(tmp_path).params.values()]
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
