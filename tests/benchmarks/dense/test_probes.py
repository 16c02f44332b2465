"""Dense probes find what tokens tell, from photos of all shapes."""

import dataclasses
import math
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from benchmarks.painted import Painted, write_scenes
from models.builders import TINY, with_vision
from PIL import Image

from siglip2_jax import Embedder
from siglip2_jax.benchmarks.dense.data import (
    DenseData,
    read_depth,
    read_index,
    read_legend,
    relative_depth,
)
from siglip2_jax.benchmarks.dense.dpt import DPT
from siglip2_jax.benchmarks.dense.heads import DepthHead
from siglip2_jax.benchmarks.dense.layer import Linear
from siglip2_jax.benchmarks.dense.normals import NormalsHead
from siglip2_jax.benchmarks.dense.probes import DepthProbe, NormalsProbe, SegmentationProbe
from siglip2_jax.benchmarks.dense.train import Recipe
from siglip2_jax.demo import tiny_config
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.sharding import make_mesh
from siglip2_jax.testing import random_params

RECIPE = Recipe(steps=120, batch_size=4, learning_rate=0.1, weight_decay=0.0)


@pytest.mark.slow
def test_segmentation_of_scenes_that_tokens_tell(tmp_path):
    """Images of several shapes: padding on both sides, void pixels, figures of predictions."""
    data = write_scenes(tmp_path, "classes")
    options = {"data": data, "classes": ("red", "green", "blue", "never"), "recipe": RECIPE}
    probe = SegmentationProbe(**options, figures=str(tmp_path / "drawn"), num_figures=2)
    found = probe(Painted())
    assert set(found) == {"miou", "pixel_accuracy"}
    assert 0.85 < found["miou"] < 1 and 0.9 < found["pixel_accuracy"] < 1
    drawn = sorted((tmp_path / "drawn").iterdir())
    assert [path.name for path in drawn] == ["000_4.png", "001_5.png"]
    for path, (photo, label) in zip(drawn, data.test, strict=False):
        picture = np.asarray(Image.open(path))
        photo, truth, said = np.split(picture, 3, axis=1)
        classes = np.asarray(Image.open(label))
        assert truth.shape[:2] == classes.shape
        assert (truth[classes == 255] == 0).all() and (truth[classes != 255] > 0).any(-1).all()
        same = (truth == said).all(-1)[classes != 255]
        assert same.mean() > 0.85
    assert found == SegmentationProbe(**options)(Painted())


@pytest.mark.slow
def test_segmentation_on_a_mesh_is_the_same(tmp_path):
    """The mesh of all devices is set, as it is where training calls evaluators."""
    recipe = Recipe(steps=4, batch_size=4, dropout=0.2)
    data = write_scenes(tmp_path, "classes")
    probe = SegmentationProbe(data=data, classes=("red", "green", "blue"), recipe=recipe)
    alone = probe(Painted())
    with jax.set_mesh(make_mesh()):
        assert probe(Painted()) == pytest.approx(alone, abs=1e-3)


@pytest.mark.slow
def test_depth_of_scenes_that_tokens_tell(tmp_path):
    data, head = write_scenes(tmp_path, "depth"), DepthHead(warmup_steps=10)
    probe = DepthProbe(data=data, recipe=RECIPE, head=head, figures=str(tmp_path / "drawn"))
    found = probe(Painted())
    truth = [read_depth(label) for _, label in data.test]
    known = np.concatenate([x[x > 0] for x in truth])
    constant = np.mean([np.sqrt(np.mean((x[x > 0] - np.median(known)) ** 2)) for x in truth])
    assert found["rmse"] < 0.35 * constant
    assert len(list((tmp_path / "drawn").iterdir())) == len(data.test)
    cropped = DepthProbe(data=data, recipe=Recipe(steps=1), crop=(0, 64, 0, 1))
    with pytest.raises(ValueError, match="none of 2 test images"):  # the left edge is unknown
        cropped(Painted())


LINEAR_NORMALS = {"decoder": Linear(), "head": NormalsHead()}


ONE_NORMAL = math.degrees(math.acos(3**-0.5))
"""Error in degrees of one answer for the scenes' three normals, which are 90 degrees apart."""


@pytest.mark.slow
def test_normals_of_scenes_that_tokens_tell(tmp_path):
    data = write_scenes(tmp_path, "normals")
    figures = str(tmp_path / "drawn")
    probe = NormalsProbe(data=data, recipe=RECIPE, figures=figures, **LINEAR_NORMALS)
    assert probe(Painted())["angular_rmse"] < ONE_NORMAL / 2
    assert len(list((tmp_path / "drawn").iterdir())) == len(data.test)


def damage(path: str) -> None:
    Path(path).write_bytes(b"no photo")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*goes on without it")
def test_photos_that_cannot_be_read(tmp_path):
    """Training leaves them out; the test counts all of their pixels as wrong."""
    folders = {kind: tmp_path / kind for kind in ("classes", "depth", "normals")}
    for folder in folders.values():
        folder.mkdir()
    recipe = dataclasses.replace(RECIPE, steps=15)
    options = {"recipe": recipe, "num_figures": 2}
    data = {kind: write_scenes(folder, kind) for kind, folder in folders.items()}
    probes = {
        "classes": partial(SegmentationProbe, classes=("red", "green", "blue")),
        "depth": partial(DepthProbe, head=DepthHead(warmup_steps=10)),
        "normals": partial(NormalsProbe, **LINEAR_NORMALS),
    }
    found = {}
    for kind, make in probes.items():
        pairs = data[kind]
        whole = dataclasses.replace(pairs, train=pairs.train[1:], test=pairs.test[1:])
        expected = make(data=whole, **options)(Painted())
        damage(pairs.train[0][0])
        damage(pairs.test[0][0])
        drawn = folders[kind] / "drawn"
        found[kind] = expected, make(data=pairs, figures=str(drawn), **options)(Painted())
        assert [path.name for path in drawn.iterdir()] == ["001_5.png"]
    expected, metrics = found["classes"]
    lost, kept = ((np.asarray(Image.open(x)) != 255).sum() for _, x in data["classes"].test)
    right = expected["pixel_accuracy"] * kept / (lost + kept)
    assert metrics["pixel_accuracy"] == pytest.approx(right, abs=1e-3)
    expected, metrics = found["depth"]
    truth = read_depth(data["depth"].test[0][1]).astype(np.float64)
    off = np.maximum(truth, 10 - truth)[truth > 0]
    worst = np.sqrt(np.mean(off**2))
    assert metrics["rmse"] == pytest.approx((expected["rmse"] + worst) / 2, abs=2e-3)
    expected, metrics = found["normals"]
    mean = (expected["angular_rmse"] + 180) / 2
    assert metrics["angular_rmse"] == pytest.approx(mean, abs=0.1)


@pytest.mark.filterwarnings("ignore:.*goes on without it")
def test_no_training_photo_can_be_read(tmp_path):
    data = write_scenes(tmp_path, "classes")
    for photo, _ in data.train:
        damage(photo)
    with pytest.raises(ValueError, match=r"none of 4 training images, such as .*0\.png, can be"):
        SegmentationProbe(data=data, classes=("a", "b", "c"), recipe=RECIPE)(Painted())


@pytest.mark.slow
def test_the_dpt_decoder_learns(tmp_path):
    """A head on the blocks of an untrained tower beats one answer for all pixels."""
    config = with_vision(TINY, depth=4)
    model = Embedder(config, random_params(config), ImagePreprocessor(4, None))
    data = write_scenes(tmp_path, "depth")
    recipe = Recipe(steps=40, batch_size=4, learning_rate=3e-3, weight_decay=0.0)
    head = DepthHead(16, high=1.0, finer=1, sig_weight=10.0, warmup_steps=0)
    options = {"decoder": DPT(16), "recipe": recipe, "max_num_patches": 20}
    data = dataclasses.replace(data, test=data.train)  # does it learn them?
    found = DepthProbe(data=data, head=head, relative=True, **options)(model)["rmse"]
    truth = [relative_depth(read_depth(label)) for _, label in data.test]
    constant = np.mean([x[x > 0].std() for x in truth])
    assert found < 0.6 * constant
    data = write_scenes(tmp_path, "normals")
    data = dataclasses.replace(data, test=data.train)
    assert NormalsProbe(data=data, **options)(model)["angular_rmse"] < ONE_NORMAL / 2


def test_a_training_set_of_void_is_refused(tmp_path):
    data = write_scenes(tmp_path, "classes")
    for _, label in data.train:
        Image.fromarray(np.full((32, 32), 255, np.uint8)).save(label)
    with pytest.raises(ValueError, match="segmentation: none of 4 training images has a labelled"):
        SegmentationProbe(data=data, classes=("a", "b", "c"), recipe=RECIPE)(Painted())


def test_recipes_are_checked():
    for wrong in ({"steps": 0}, {"steps": 1, "batch_size": 0}):
        with pytest.raises(ValueError, match="expected at least 1"):
            Recipe(**wrong)
    for wrong in ({"warmup": 1.0}, {"dropout": -0.1}):
        with pytest.raises(ValueError, match="expected shares from 0"):
            Recipe(steps=1, **wrong)


@pytest.mark.slow
def test_street_scenes_with_a_tiny_model(shared, tmp_path):
    folder = shared / "data" / "camvid_60"
    whole, legend = read_index(folder / "index.jsonl"), read_legend(folder / "classes.json")
    data = DenseData(train=whole.train[:6], test=whole.test[:2])
    config = tiny_config()
    model = Embedder(config, random_params(config), ImagePreprocessor(16, None))
    recipe = Recipe(steps=25, batch_size=3, learning_rate=0.01)
    probe = SegmentationProbe(
        data=data,
        classes=legend.names,
        void=legend.void,
        recipe=recipe,
        max_num_patches=48,
        figures=str(tmp_path),
    )
    found = probe(model)
    assert len(legend.names) == 11 and 0.05 < found["miou"] < 1
    assert found["pixel_accuracy"] > 0.3  # a class at random: 0.09
    figures = [np.asarray(Image.open(path)) for path in sorted(tmp_path.iterdir())]
    assert [picture.shape for picture in figures] == [(360, 1440, 3)] * 2


@pytest.mark.slow
def test_a_room_with_a_tiny_model(shared):
    whole = read_index(shared / "data" / "depth_7scenes_32" / "index.jsonl", label="depth")
    data = DenseData(train=whole.train[:6], test=whole.test[:2])
    config = tiny_config()
    model = Embedder(config, random_params(config), ImagePreprocessor(16, None))
    recipe = Recipe(steps=60, batch_size=3, learning_rate=0.03)
    found = DepthProbe(data=data, recipe=recipe, max_num_patches=48)(model)
    assert 0.05 < found["rmse"] < 1.5  # what it says untrained, about 5 m, is 3 m off
