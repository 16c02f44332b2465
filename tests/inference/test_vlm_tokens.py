"""Image tokens for language models: states of blocks, without padding, neighbours merged."""

import dataclasses

import jax
import numpy as np
import pytest
from inference.samples import noise
from models import numpy_reference as reference
from models.builders import TINY, patches, with_vision

from siglip2_jax import Embedder, load
from siglip2_jax.preprocess.decode import ImageError
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.testing import random_params
from siglip2_jax.types import Patches

CONFIG = with_vision(TINY, depth=3)
FIXED = with_vision(CONFIG, image_size=20, grid=5)
GRIDS = [(3, 4), (1, 1), (5, 2), (4, 4)]
WIDTH = CONFIG.vision.width


def model_of(config=CONFIG, **options) -> Embedder:
    preprocess = ImagePreprocessor(4, config.vision.image_size)
    return Embedder(config, random_params(config), preprocess, **options)


@pytest.fixture(scope="module")
def model() -> Embedder:
    return model_of()


def states(model: Embedder, image: Patches, row: int) -> list[np.ndarray]:
    """The residual stream of one image before and after every block, in float64 NumPy."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), model.params["vision"])
    real = image.valid[row]
    rows, columns = image.yx[row][real].max(0) + 1
    pixels = image.pixels[row][real].astype(np.float64)
    x = pixels @ params["embed"]["kernel"] + params["embed"]["bias"]
    outputs = [x + reference.positions(params["pos"]["table"], rows, columns)]
    for i in range(model.config.vision.depth):
        block = reference.at_layer(params["encoder"]["blocks"], i)
        y = reference.layer_norm(outputs[-1], block["ln1"])
        x = outputs[-1] + reference.attention(y, y, block["attn"])
        outputs.append(x + reference.mlp(reference.layer_norm(x, block["ln2"]), block["mlp"]))
    return outputs


@pytest.mark.parametrize("config", [CONFIG, FIXED], ids=["native", "fixed"])
def test_layers_are_counted_as_hidden_states_are(config):
    model = model_of(config)
    grids = GRIDS if config.native_resolution else [(5, 5)] * 2
    image = patches(grids, max(np.prod(grids, axis=1)), fill=np.nan)
    layers = (0, 1, -2, -1, 3, -4)
    images = model.tokens_for_vlm(image, layers, merge=1)
    assert [x.grid for x in images] == grids
    for row, x in enumerate(images):
        expected = [states(model, image, row)[layer] for layer in layers]
        assert x.tokens.dtype == np.float32
        np.testing.assert_allclose(x.tokens, expected, rtol=0, atol=2e-5)


def test_default_is_the_penultimate_layer_merged(model):
    (image,) = model.tokens_for_vlm(patches([(4, 6)], 24))
    (alone,) = model.tokens_for_vlm(patches([(4, 6)], 24), [2], merge=1)
    assert image.grid == (2, 3) and image.tokens.shape == (1, 6, 4 * WIDTH)
    for n, (row, column) in enumerate(np.ndindex(2, 3)):
        corner = 2 * row * 6 + 2 * column
        block = alone.tokens[0, [corner, corner + 1, corner + 6, corner + 7]]
        np.testing.assert_array_equal(image.tokens[0, n], block.ravel())


def test_the_edge_of_a_grid_that_does_not_divide_is_repeated(model):
    image = patches([(3, 5)], 15)
    (alone,) = model.tokens_for_vlm(image, (1, 2), merge=1)
    (merged,) = model.tokens_for_vlm(image, (1, 2), merge=2)
    assert merged.grid == (2, 3) and merged.tokens.shape == (2, 6, 4 * WIDTH)
    corner, right = alone.tokens[:, 14], alone.tokens[:, [4, 9]]
    np.testing.assert_array_equal(merged.tokens[:, 5], np.tile(corner, 4))
    last = np.concatenate([right[:, [0, 0]], right[:, [1, 1]]], 1).reshape(2, -1)
    np.testing.assert_array_equal(merged.tokens[:, 2], last)


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_norm_makes_the_last_layer_the_tokens_of_image_features(model, weights, tmp_path):
    model.save(tmp_path / "model", "hf")
    model = load(tmp_path / "model", weights=weights)
    image = patches(GRIDS, 16)
    features = model.image_features(image)
    for row, x in enumerate(model.tokens_for_vlm(image, (-1,), merge=1, norm=True)):
        expected = features.tokens[row][features.valid[row]]
        np.testing.assert_allclose(x.tokens[0], expected, rtol=0, atol=2e-6)


def test_images_are_cut_into_whole_blocks(model):
    """The official search for sizes, with blocks in place of patches."""
    images = [noise(9, 30), noise(64, 16), noise(5, 5), noise(3, 200)]
    large = ImagePreprocessor(8, None)
    for x, image in zip(model.tokens_for_vlm(images, max_num_patches=40), images, strict=True):
        assert x.grid == large.grid(image.shape[:2], 10)
        assert x.tokens.shape == (1, x.grid[0] * x.grid[1], 4 * WIDTH)
    cut = model.preprocess(images, 40, merge=2)
    for x, y in zip(
        model.tokens_for_vlm(cut), model.tokens_for_vlm(images, max_num_patches=40), strict=True
    ):
        np.testing.assert_allclose(x.tokens, y.tokens, rtol=0, atol=1e-5)


def test_fixed_resolution_has_one_grid():
    images = [noise(9, 30), noise(64, 16)]
    tokens = model_of(FIXED).tokens_for_vlm(images, max_num_patches=1)
    assert [x.grid for x in tokens] == [(3, 3)] * 2
    assert [x.tokens.shape for x in tokens] == [(1, 9, 4 * WIDTH)] * 2


def test_devices_change_nothing(model):
    images = [noise(9, 30), noise(64, 16), noise(5, 5)]
    spread = model_of()
    spread.replicate_over(jax.devices())
    options = {"layers": (0, -1, 2), "max_num_patches": 16}
    found, expected = (m.tokens_for_vlm(images, **options) for m in (spread, model))
    assert jax.device_count() > 1
    for x, y in zip(found, expected, strict=True):
        assert x.grid == y.grid
        np.testing.assert_allclose(x.tokens, y.tokens, rtol=0, atol=1e-5)


def test_bfloat16_gives_float32(model):
    image = patches(GRIDS, 16)
    for x, y in zip(
        model_of(dtype="bfloat16").tokens_for_vlm(image), model.tokens_for_vlm(image), strict=True
    ):
        assert x.tokens.dtype == np.float32
        assert 0 < np.linalg.norm(x.tokens - y.tokens) < 0.02 * np.linalg.norm(y.tokens)


def test_clear_errors(model, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut short")
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        model.tokens_for_vlm([noise(5, 5), tmp_path / "broken.jpg"], max_num_patches=16)
    image = patches([(2, 3)], 6)
    for layers in ((4,), (-5,), ()):
        with pytest.raises(ValueError, match=r"expected numbers from -4 to 3, as the vision tower"):
            model.tokens_for_vlm(image, layers)
    with pytest.raises(ValueError, match="merge is 0; it must be at least 1"):
        model.tokens_for_vlm(image, merge=0)
    with pytest.raises(ValueError, match=r"max_num_patches is 3; .* needs at least 4"):
        model.tokens_for_vlm(noise(5, 5), max_num_patches=3)
    holes = dataclasses.replace(image, valid=image.valid & (np.arange(6) != 2))
    with pytest.raises(ValueError, match="5 valid patches in a grid of 2 x 3; expected all 6"):
        model.tokens_for_vlm(holes)
    assert model.tokens_for_vlm([]) == []
