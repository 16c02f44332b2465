"""Inputs made beside an export, without this package: the arrays that the package makes."""

import shutil

import numpy as np
import pytest
from PIL import Image

from siglip2_jax.demo import TOKENIZER, shipped_examples
from siglip2_jax.export import inputs
from siglip2_jax.export.manifest import describe
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.preprocess.tokenizer import Tokenizer
from siglip2_jax.testing import TINY, TINY_FIXED, tiny_embedder


@pytest.fixture
def files(tmp_path):
    """Photos, and images that are wide, tall, small, grey, transparent, turned."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(7)]
    for path, shape in zip(paths, [(3, 90, 3), (90, 3, 3), (1, 1, 3), (40, 50)], strict=False):
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(path)
    Image.fromarray(rng.integers(0, 256, (30, 20, 4), np.uint8)).save(paths[4])
    turned = Image.fromarray(rng.integers(0, 256, (60, 20, 3), np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(paths[5], exif=exif)
    Image.fromarray(rng.integers(0, 256, (30, 20), np.uint8)).convert("P").save(paths[6])
    photos = [tmp_path / f"photo{i}.jpg" for i in range(3)]
    for path, example in zip(photos, shipped_examples(), strict=False):
        shutil.copy(example.image, path)
    return [*paths, *photos]


@pytest.mark.parametrize(
    ("mode", "resample"), [("reference", "bilinear"), ("hf", "bilinear"), ("hf", "bicubic")]
)
@pytest.mark.parametrize(
    ("patch_size", "image_size", "budget", "exif"),
    [(4, None, 1, True), (16, None, 100, False), (4, 16, 1, True), (14, 384, 1, False)],
)
def test_images(files, mode, resample, patch_size, image_size, budget, exif):
    preprocess = ImagePreprocessor(patch_size, image_size, mode, resample, exif)
    embedder = tiny_embedder(TINY)
    embedder.preprocess = preprocess
    pixels, yx, valid = inputs.image_patches(files, describe(embedder), budget)
    expected = preprocess(files, budget)
    np.testing.assert_array_equal(yx, expected.yx)
    np.testing.assert_array_equal(valid, expected.valid)
    np.testing.assert_allclose(pixels, expected.pixels, rtol=0, atol=1e-5)
    assert (pixels.dtype, yx.dtype, valid.dtype) == (np.float32, np.int32, np.bool_)


@pytest.mark.parametrize("norm", ["reference", "unicode_lower", "canonicalize", "none"])
@pytest.mark.parametrize("pad_id", [0, 1])
def test_texts(norm, pad_id):
    tokenizer = Tokenizer.load(TOKENIZER, text_norm=norm, length=12, pad_id=pad_id)
    settings = {"text": {"norm": norm, "length": 12, "pad_id": pad_id}}
    texts = ["A Photo of a_cat!", "ÉCOLE, МОСКВА", "", "a dog " * 30, "x" * 10]
    ids = inputs.token_ids(texts, settings, TOKENIZER)
    np.testing.assert_array_equal(ids, tokenizer(texts).ids)
    assert ids.dtype == np.int32


def test_settings_are_those_of_the_model(files):
    for config in (TINY, TINY_FIXED):
        embedder = tiny_embedder(config)
        settings = describe(embedder)
        arrays = inputs.image_patches(files[:2], settings, 16)
        np.testing.assert_allclose(arrays[0], embedder.preprocess(files[:2], 16).pixels, atol=1e-5)
        ids = inputs.token_ids(["a cat"], settings, TOKENIZER)
        assert embedder.tokenizer is not None
        np.testing.assert_array_equal(ids, embedder.tokenizer("a cat").ids)


def test_other_depths_are_refused(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"deep.png has Pillow's mode I;16, expected 8 bits"):
        inputs.image_patches([tmp_path / "deep.png"], describe(tiny_embedder()))
