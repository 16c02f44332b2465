"""Features for probes: blocks of the tower, unreadable photos, hosts that share the work."""

import jax
import numpy as np
import pytest
from models.builders import TINY, patches, with_vision
from models.numpy_reference import layer_norm
from PIL import Image

from siglip2_jax.benchmarks.dense import features as dense_features
from siglip2_jax.benchmarks.dense.blocks import block_features
from siglip2_jax.benchmarks.dense.features import read_features
from siglip2_jax.benchmarks.measured import Measured
from siglip2_jax.inference.embedder import Embedder
from siglip2_jax.models.siglip2 import flatten, unflatten
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.sharding import device_put_global, make_mesh, param_shardings
from siglip2_jax.testing import random_params

CONFIG = with_vision(TINY, depth=5)
GRIDS = [(3, 4), (2, 3), (1, 1)]
READ = {"max_num_patches": 16, "label": "photos"}


def model_of(params, config=CONFIG, **options) -> Embedder:
    return Embedder(config, params, ImagePreprocessor(4, None), **options)


@pytest.fixture(scope="module")
def model() -> Embedder:
    return model_of(random_params(CONFIG))


def cut(params: dict, depth: int) -> dict:
    """Without the blocks after the first few."""
    leaves = flatten(params)
    stacked = "vision/encoder/blocks"
    return unflatten({k: x[:depth] if k.startswith(stacked) else x for k, x in leaves.items()})


@pytest.mark.slow
def test_blocks_are_the_ends_of_shorter_towers(model):
    """Their tokens behind the last norm are what a tower without the later blocks gives."""
    image = patches(GRIDS, budget=12, fill=np.nan)
    found = block_features(model, image, 4)
    whole = model.image_features(image)
    norm = model.params["vision"]["encoder"]["norm"]
    norm = jax.tree.map(lambda x: np.asarray(x, np.float64), norm)
    for depth, block in zip((1, 2, 3, 5), found, strict=True):
        config = with_vision(CONFIG, depth=depth)
        shorter = model_of(cut(model.params, depth), config).image_features(image)
        tokens = layer_norm(block.tokens[image.valid].astype(np.float64), norm)
        np.testing.assert_allclose(tokens, shorter.tokens[image.valid], atol=2e-5)
        np.testing.assert_allclose(block.pooled, whole.pooled, atol=1e-5)
        np.testing.assert_allclose(block.image, whole.image, atol=1e-6)
        np.testing.assert_array_equal(block.grid, GRIDS)
        np.testing.assert_array_equal(block.valid, image.valid)


@pytest.mark.slow
def test_blocks_on_a_mesh_are_the_same(model):
    image, mesh = patches(GRIDS, budget=12), make_mesh()
    leaves = flatten(model.params)
    split = {
        path: device_put_global(np.asarray(leaves[path]), x)
        for path, x in param_shardings(mesh, leaves).items()
    }
    alone = block_features(model, image, 2)
    with jax.set_mesh(mesh):  # as evaluators are called in training
        found = block_features(model_of(unflatten(split), mesh=mesh), image, 2)
    for one, other in zip(alone, found, strict=True):
        np.testing.assert_allclose(
            other.tokens[image.valid], one.tokens[image.valid], rtol=1e-5, atol=1e-5
        )


def test_blocks_need_a_tower_that_has_them(model):
    image = patches(GRIDS, budget=12)
    with pytest.raises(ValueError, match="6 blocks of a tower are requested; expected 1 to 5"):
        block_features(model, image, 6)
    with pytest.raises(ValueError, match="load it without --transformers"):
        block_features(model_of({"t": np.zeros(()), "b": np.zeros(())}), image, 4)


def write_images(folder, count=11, damaged=(2, 7)) -> list[str]:
    rng = np.random.default_rng(0)
    paths = [folder / f"{i}.png" for i in range(count)]
    for i, path in enumerate(paths):
        Image.fromarray(rng.integers(0, 256, (8 + i, 12, 3), np.uint8)).save(path)
        if i in damaged:
            path.write_bytes(b"no photo")
    return [str(path) for path in paths]


@pytest.mark.parametrize("blocks", [0, 2])
def test_unreadable_photos_are_listed_and_left_out(model, tmp_path, monkeypatch, blocks):
    monkeypatch.setattr(dense_features, "IMAGES_AT_ONCE", 4)
    photos = write_images(tmp_path)
    measured = Measured(model)
    found = read_features(measured, photos, blocks=blocks, **READ)
    good = [i for i in range(11) if i not in (2, 7)]
    assert found.read.tolist() == good and len(found.features) == max(1, blocks)
    whole = model.image_features([photos[i] for i in good], max_num_patches=16)
    for block in found.features:
        np.testing.assert_allclose(block.pooled, whole.pooled, atol=1e-5)
        np.testing.assert_array_equal(block.grid, whole.grid)
    if not blocks:
        tokens = found.features[0].tokens
        np.testing.assert_allclose(tokens[whole.valid], whole.tokens[whole.valid], atol=1e-5)
    assert [x.split(":")[0] for x in measured.failed] == [photos[2], photos[7]]
    assert measured.images == measured.embedded == 11
    assert 0 < measured.data_wait <= measured.seconds
    with pytest.warns(UserWarning, match="goes on without it") as warned:
        plain = read_features(model, photos, blocks=blocks, **READ)
    assert len(warned) == 2 and plain.read.tolist() == good


def test_no_photo_can_be_read(model, tmp_path):
    photos = write_images(tmp_path, 3, (0, 1, 2))
    found = read_features(Measured(model), photos, blocks=2, **READ)
    assert len(found.read) == 0 and found.features[1].tokens.shape == (0, 16, 48)


@pytest.mark.parametrize("count", [1, 5, 6, 11])
def test_hosts_share_the_photos(model, tmp_path, monkeypatch, count):
    """Processes one after the other, each with what the others would send."""
    photos = write_images(tmp_path, count)
    alone = read_features(Measured(model), photos, blocks=2, **READ)
    monkeypatch.setattr(dense_features, "IMAGES_AT_ONCE", 6)
    monkeypatch.setattr(dense_features, "gather_texts", lambda own: own)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    sent, embedded = [], []
    for process in range(3):
        monkeypatch.setattr(jax, "process_index", lambda p=process: p)
        own = []
        measured = Measured(model)
        kept = lambda found, total, own=own: own.append(found) or found  # noqa: E731
        monkeypatch.setattr(dense_features, "_gathered", kept)
        read_features(measured, photos, blocks=2, **READ)
        sent.append(own)
        embedded.append(measured.embedded)
        assert measured.images == count
    assert sum(embedded) == count and max(embedded) - min(embedded) <= 2
    monkeypatch.undo()
    for i, everyone in enumerate(zip(*sent, strict=True)):
        stacked = jax.tree.map(lambda *x: np.stack(x), *everyone)
        monkeypatch.setattr(dense_features, "process_allgather", lambda _, x=stacked: x)
        good, found = dense_features._gathered(everyone[0], min(6, count - 6 * i))
        inside = (alone.read >= 6 * i) & (alone.read < 6 * i + 6)
        np.testing.assert_array_equal(good.nonzero()[0] + 6 * i, alone.read[inside])
        for one, other in zip(alone.features, found, strict=True):
            np.testing.assert_allclose(other.tokens[good], one.tokens[inside], atol=1e-4)
            np.testing.assert_allclose(other.pooled[good], one.pooled[inside], atol=1e-5)
