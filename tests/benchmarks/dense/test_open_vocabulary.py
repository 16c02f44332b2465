"""Segmentation by the names of classes: patches in the space of texts."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from benchmarks.painted import Painted, plain_bilinear, write_scenes
from inference.samples import noise
from models.builders import TINY, with_vision
from models.numpy_reference import layer_norm, mlp
from PIL import Image

from siglip2_jax import Embedder
from siglip2_jax.benchmarks.dense.data import read_index, read_legend
from siglip2_jax.benchmarks.dense.features import read_features
from siglip2_jax.benchmarks.dense.open_vocabulary import OpenVocabulary, patch_embeddings
from siglip2_jax.demo import TOKENIZER, tiny_config
from siglip2_jax.models.siglip2 import abstract_model, flatten, unflatten
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.preprocess.tokenizer import Tokenizer
from siglip2_jax.sharding import device_put_global, make_mesh, param_shardings
from siglip2_jax.testing import random_params
from siglip2_jax.types import Features

CLASSES = ("red", "green", "blue", "never")


def model_of(params, **options) -> Embedder:
    return Embedder(TINY, params, ImagePreprocessor(4, None), **options)


def random_features() -> Features:
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((3, 12, 48), np.float32)
    valid = np.arange(12) < np.array([[12], [6], [1]])
    tokens[~valid] = np.nan
    grid = np.array([[3, 4], [2, 3], [1, 1]], np.int32)
    return Features(tokens, tokens[:, 0], tokens[:, 0], valid, grid)


def test_every_patch_goes_through_the_head_alone():
    """Value and output projections, then the MLP, in float64."""
    params, features = random_params(TINY), random_features()
    found = patch_embeddings(model_of(params), features)
    pool = jax.tree.map(lambda x: x.astype(np.float64), params["vision"]["pool"])
    value, out = pool["attn"]["value"], pool["attn"]["out"]
    valid = features.valid
    heads = np.einsum("nd,dhc->nhc", features.tokens[valid], value["kernel"]) + value["bias"]
    pooled = np.einsum("nhc,hcd->nd", heads, out["kernel"]) + out["bias"]
    expected = pooled + mlp(layer_norm(pooled, pool["norm"]), pool["mlp"])
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(found[valid], expected, atol=1e-6)
    assert found.shape == features.tokens.shape and (found[~valid] == 0).all()


def test_an_image_of_one_patch_is_its_patch():
    model = model_of(random_params(TINY))
    features = model.image_features([noise(4, 4), noise(5, 6)], max_num_patches=1)
    assert features.grid.tolist() == [[1, 1]] * 2
    found = patch_embeddings(model, features)
    np.testing.assert_allclose(found[:, 0], features.image, atol=1e-6)


def test_on_a_mesh_the_same():
    params, features, mesh = random_params(TINY), random_features(), make_mesh()
    alone = patch_embeddings(model_of(params), features)
    leaves = flatten(params)
    split = {
        path: device_put_global(leaves[path], x)
        for path, x in param_shardings(mesh, leaves).items()
    }
    model = model_of(unflatten(split), mesh=mesh)
    np.testing.assert_allclose(patch_embeddings(model, features), alone, atol=1e-6)
    with jax.set_mesh(mesh):  # as evaluators are called in training
        np.testing.assert_allclose(patch_embeddings(model, features), alone, atol=1e-6)


class Named(Painted):
    """Its tokens are colours, its head leaves them as they are, its texts say colours."""

    mesh, dtype, text_norm = None, "float32", "reference"

    def __init__(self):
        config = with_vision(TINY, width=3, num_heads=1, mlp_dim=2)
        leaves = flatten(abstract_model(config)[1])
        pool = {path: np.zeros(x.shape, np.float32) for path, x in leaves.items() if "pool" in path}
        for name in ("value", "out"):
            kernel = pool[f"vision/pool/attn/{name}/kernel"]
            kernel += np.eye(3).reshape(kernel.shape)
        self.config, self.params = SimpleNamespace(vision=config.vision), unflatten(pool)

    def embed_texts(self, texts, **_):
        colours = dict(zip(CLASSES, [*np.eye(3), np.full(3, -(3**-0.5))], strict=True))
        return np.stack([colours[text.split()[-1]] for text in texts]).astype(np.float32)


def plain_maps(pairs):
    """Classes by the cosines, enlarged pixel by pixel, and the true ones."""
    photos = [photo for photo, _ in pairs]
    (features,), _ = read_features(Painted(), photos, max_num_patches=0, blocks=0, label="")
    for tokens, valid, grid, (_, label) in zip(
        features.tokens, features.valid, features.grid, pairs, strict=True
    ):
        colours = tokens[valid].astype(np.float64).reshape(*grid, 3)
        colours /= np.linalg.norm(colours, axis=-1, keepdims=True)
        truth = np.asarray(Image.open(label))
        yield plain_bilinear(colours, *truth.shape).argmax(-1), truth


@pytest.mark.slow
def test_scenes_whose_colours_have_names(tmp_path):
    """Images of several shapes, a class that no image has, void pixels, figures."""
    data = write_scenes(tmp_path, "classes")
    pairs = data.train + data.test
    drawn = tmp_path / "drawn"
    evaluator = OpenVocabulary(pairs=pairs, classes=CLASSES, figures=str(drawn), num_figures=2)
    found = evaluator(Named())
    hits, unions = np.zeros(3), np.zeros(3)
    for said, truth in plain_maps(pairs):
        for i in range(3):
            hits[i] += ((said == i) & (truth == i)).sum()
            unions[i] += (((said == i) & (truth != 255)) | (truth == i)).sum()
    # Where three colours meet, rounding may decide.
    assert found["miou"] == pytest.approx((hits / unions).mean(), abs=2e-3)
    assert 0.9 < found["miou"] < found["pixel_accuracy"] < 1
    assert [path.name for path in sorted(drawn.iterdir())] == ["000_0.png", "001_1.png"]
    photo, truth, said = np.split(np.asarray(Image.open(drawn / "000_0.png")), 3, axis=1)
    classes = np.asarray(Image.open(pairs[0][1]))
    assert photo.shape[:2] == classes.shape and (truth[classes == 255] == 0).all()
    assert (truth == said).all(-1)[classes != 255].mean() > 0.9
    with jax.set_mesh(make_mesh()):
        assert evaluator(Named()) == pytest.approx(found, abs=1e-3)


def test_photos_that_cannot_be_read_are_wrong(tmp_path):
    data = write_scenes(tmp_path, "classes")
    pairs = data.train + data.test
    options = {"classes": CLASSES, "figures": str(tmp_path / "drawn")}
    whole = OpenVocabulary(pairs=pairs[1:], **options)(Named())["pixel_accuracy"]
    Path(pairs[0][0]).write_bytes(b"no photo")
    labels = [np.asarray(Image.open(label)) for _, label in pairs]
    lost, rest = (labels[0] != 255).sum(), sum((label != 255).sum() for label in labels[1:])
    with pytest.warns(UserWarning, match=r"0\.png: not an image file"):
        found = OpenVocabulary(pairs=pairs, **options)(Named())
    assert found["pixel_accuracy"] == pytest.approx(whole * rest / (lost + rest), abs=1e-12)
    with pytest.warns(UserWarning, match=r"0\.png: not an image file"):
        assert OpenVocabulary(pairs=pairs[:1], **options)(Named())["miou"] == 0


def test_one_class_and_nothing_but_void(tmp_path):
    data = write_scenes(tmp_path, "classes")
    one = Image.fromarray(np.zeros((5, 7), np.uint8))
    one.save(tmp_path / "one.png")
    options = {"pairs": ((data.test[0][0], str(tmp_path / "one.png")),)}
    assert OpenVocabulary(classes=("red",), **options)(Named()) == {"miou": 1, "pixel_accuracy": 1}
    with pytest.raises(ValueError, match="every pixel of the truth is void"):
        OpenVocabulary(classes=("red",), void=0, **options)(Named())


def test_settings_are_checked():
    pairs = (("photo.png", "label.png"),)
    with pytest.raises(ValueError, match="pairs is empty"):
        OpenVocabulary(pairs=(), classes=CLASSES)
    with pytest.raises(ValueError, match="0 class names and 1 templates"):
        OpenVocabulary(pairs=pairs, classes=())
    with pytest.raises(ValueError, match="has 0 places for the class name"):
        OpenVocabulary(pairs=pairs, classes=CLASSES, templates=("a photo",))


@pytest.mark.slow
def test_street_scenes_with_a_tiny_model(shared, tmp_path):
    folder = shared / "data" / "camvid_60"
    pairs = read_index(folder / "index.jsonl").test[:3]
    legend = read_legend(folder / "classes.json")
    config = tiny_config()
    words = Tokenizer.load(TOKENIZER)
    model = Embedder(config, random_params(config), ImagePreprocessor(16, None), words)
    evaluator = OpenVocabulary(
        pairs=pairs,
        classes=legend.names,
        templates=("a photo of a {}", "{}"),
        void=legend.void,
        max_num_patches=48,
        figures=str(tmp_path),
    )
    found = evaluator(model)
    assert 0 <= found["miou"] < 0.3 and 0 < found["pixel_accuracy"] < 1  # it has learned nothing
    figures = [np.asarray(Image.open(path)) for path in sorted(tmp_path.iterdir())]
    assert [picture.shape for picture in figures] == [(360, 1440, 3)] * 3
    named_twice = dataclasses.replace(evaluator, figures=None, canonical=True)
    assert named_twice(model)["miou"] == pytest.approx(found["miou"], abs=0.1)
