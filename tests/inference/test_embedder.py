"""`load` gives the same embeddings however the model and the images come."""

import dataclasses
import inspect

import jax
import numpy as np
import pytest
from flax import nnx
from inference.samples import counted_compilations, noise, png
from PIL import Image

from siglip2_jax import Compute, Embedder, Patches, SigLIP2, load
from siglip2_jax.demo import TOKENIZER
from siglip2_jax.inference.towers import Towers
from siglip2_jax.models.config import ModelConfig
from siglip2_jax.models.siglip2 import flatten
from siglip2_jax.preprocess.decode import ImageError
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.preprocess.tokenizer import Tokenizer, TokenizerError
from siglip2_jax.testing import TINY, TINY_FIXED, random_params, tiny_embedder

SMALL = {"max_num_patches": 16, "batch_size": 4}
TEXTS = ["a dog on a beach", "Two CATS", "", "é"]


def as_patches(model: Embedder, *images: np.ndarray) -> Patches:
    return model.preprocess(images, 16)


@pytest.fixture(scope="module")
def model() -> Embedder:
    return tiny_embedder()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory) -> dict:
    """The same model in all three formats."""
    directory = tmp_path_factory.mktemp("saved")
    paths = {"npz": directory / "model.npz", "hf": directory / "hf", "orbax": directory / "orbax"}
    for name, path in paths.items():
        model.save(path, name)
    return paths


@pytest.mark.parametrize("name", ["npz", "hf", "orbax"])
def test_every_format_gives_the_same_embeddings(model, saved, name):
    # The two directories hold their tokenizer; an .npz file has no room for one.
    found = load(saved[name], TOKENIZER if name == "npz" else None)
    assert found.config == TINY and found.variant is None
    for path, x in flatten(found.params).items():
        np.testing.assert_array_equal(x, flatten(model.params)[path], err_msg=path)
    images = [noise(9, 30), noise(16, 16), noise(50, 4)]
    expected = model.embed_images(images, **SMALL)
    np.testing.assert_allclose(found.embed_images(images, **SMALL), expected, atol=1e-6)
    expected = model.embed_texts(TEXTS, batch_size=4)
    np.testing.assert_allclose(found.embed_texts(TEXTS, batch_size=4), expected, atol=1e-6)
    assert found.temperature == pytest.approx(np.exp(2.3), rel=1e-6) and found.bias == -9.5


def test_save_and_load_keep_how_inputs_are_prepared(tmp_path):
    preprocess = ImagePreprocessor(patch_size=4, image_size=None, mode="hf", resample="bicubic")
    tokenizer = Tokenizer.load(TOKENIZER, text_norm="canonicalize")
    Embedder(TINY, random_params(TINY), preprocess, tokenizer).save(tmp_path / "model")
    found = load(tmp_path / "model")
    assert found.preprocess == preprocess
    assert found.text_norm == found.tokenizer.text_norm == "canonicalize"
    with pytest.raises(FileExistsError, match="exists"):
        found.save(tmp_path / "model")


def test_what_is_asked_for_goes_before_what_is_recorded(saved):
    asked = load(saved["npz"], TOKENIZER, preproc="hf", text_norm="none", exif=False)
    assert asked.preprocess.mode == "hf" and not asked.preprocess.exif
    assert asked.text_norm == asked.tokenizer.text_norm == "none"


def test_images_may_come_in_any_form(model, tmp_path):
    pixels = noise(13, 29)
    path = tmp_path / "photo.png"
    path.write_bytes(png(pixels))
    forms = [path, str(path), path.read_bytes(), Image.open(path), pixels]
    expected = model.embed_images(as_patches(model, pixels), batch_size=4)
    assert expected.shape == (1, 24) and expected.dtype == np.float32
    together = model.embed_images(forms, **SMALL)
    np.testing.assert_allclose(together, np.repeat(expected, len(forms), 0), atol=1e-6)
    for form in forms:  # one image needs no list
        np.testing.assert_allclose(model.embed_images(form, **SMALL), expected, atol=1e-6)


def test_shapes_may_be_mixed(model):
    sizes = [(1, 1), (1, 400), (400, 1), (37, 21), (64, 64), (3, 200), (16, 16)]
    images = [noise(*size) for size in sizes]
    rows = model.embed_images(iter(images), **SMALL)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    alone = np.concatenate([model.embed_images(image, **SMALL) for image in images])
    np.testing.assert_allclose(rows, alone, atol=1e-6)
    cosines = rows @ rows.T - 2 * np.eye(len(rows))
    assert cosines.max() < 0.9999  # different images do differ


def test_a_broken_image_costs_its_own_row_only(model, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut short")
    images = [noise(8, 8), tmp_path / "broken.jpg", b"", noise(5, 9), tmp_path / "absent.jpg"]
    with pytest.warns(UserWarning) as caught:
        rows = model.embed_images(images, **SMALL)
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 3
    for name, message in zip(("broken.jpg", "zero bytes", "absent.jpg"), messages, strict=True):
        assert name in message
    assert np.isnan(rows).all(axis=1).tolist() == [False, True, True, False, True]
    expected = model.embed_images([images[0], images[3]], **SMALL)
    np.testing.assert_allclose(rows[[0, 3]], expected, atol=1e-6)
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        model.embed_images(images, on_error="raise", **SMALL)
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        model.image_features(images, **SMALL)


def test_nothing_in_nothing_out(model):
    assert model.embed_images([]).shape == (0, 24)
    assert model.embed_texts([]).shape == (0, 24)
    assert model.embed_tokens(np.zeros((0, 64), np.int32)).shape == (0, 24)
    assert list(model.stream_images([])) == []
    with pytest.raises(ValueError, match="at least one"):
        model.image_features([])


def test_parameters_go_to_the_device_once():
    params = random_params(TINY)
    model = Embedder(TINY, params, ImagePreprocessor(4, None))
    assert isinstance(params["t"], np.ndarray) and isinstance(model.params["t"], jax.Array)
    again = Embedder(TINY, model.params, model.preprocess)
    pairs = zip(jax.tree.leaves(again.params), jax.tree.leaves(model.params), strict=True)
    assert all(ours is theirs for ours, theirs in pairs)


def test_one_text_needs_no_list(model):
    rows = model.embed_texts(TEXTS, batch_size=4)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(model.embed_texts(TEXTS[0], batch_size=4), rows[:1], atol=1e-6)
    upper = model.embed_texts(TEXTS[0].upper(), batch_size=4)
    np.testing.assert_array_equal(upper, model.embed_texts(TEXTS[0], batch_size=4))


def test_image_features_are_maps(model):
    images = [noise(1, 400), noise(16, 16), noise(30, 11), noise(2, 2), noise(9, 9)]
    features = model.image_features(images, **SMALL)
    assert features.tokens.shape == (5, 16, 24) and features.text is None
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(features))
    for i, image in enumerate(images):
        assert tuple(features.grid[i]) == model.preprocess.grid(image.shape[:2], 16)
        feature_map = features.tokens[i][features.valid[i]].reshape(*features.grid[i], -1)
        assert feature_map.shape[2] == 24 and np.isfinite(feature_map).all()
    length = np.linalg.norm(features.pooled, axis=1, keepdims=True)
    np.testing.assert_allclose(features.image, features.pooled / length, atol=1e-6)
    np.testing.assert_allclose(features.image, model.embed_images(images, **SMALL), atol=1e-6)
    same = model.image_features(as_patches(model, *images), batch_size=4)
    np.testing.assert_allclose(same.tokens[same.valid], features.tokens[features.valid], atol=1e-5)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (np.zeros((2, 63), np.int32), r"shape \(2, 63\), the text tower reads \[n, 64\]"),
        (np.zeros((2, 65), np.int64), r"shape \(2, 65\)"),
        (np.full((1, 64), 1024), "from 1024 to 1024, the token table has 1024 rows"),
        (np.full((1, 64), -1), "from -1 to -1"),
    ],
)
def test_wrong_token_ids_are_refused(model, ids, words):
    with pytest.raises(ValueError, match=words):
        model.embed_tokens(ids)


def test_tokens_are_what_the_tokenizer_gives(model):
    ids = model.tokenizer(TEXTS).ids
    expected = model.embed_texts(TEXTS, batch_size=4)
    np.testing.assert_array_equal(model.embed_tokens(ids, batch_size=4), expected)
    as_int64 = model.embed_tokens(ids.astype(np.int64), batch_size=4)
    np.testing.assert_array_equal(as_int64, expected)


def test_a_model_without_tokenizer_says_so():
    with pytest.raises(TokenizerError, match="pass tokenizer="):
        tiny_embedder(tokenizer=False).embed_texts("a dog")


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    text = dataclasses.replace(TINY.text, vocab_size=100)
    config = dataclasses.replace(TINY, text=text)
    tiny_embedder(config, tokenizer=False).save(tmp_path / "model.npz", "npz")
    with pytest.raises(TokenizerError, match="1024 ids, the checkpoint's token table has 100 rows"):
        load(tmp_path / "model.npz", TOKENIZER)


def test_logits_and_probabilities(model):
    rng = np.random.default_rng(0)
    images, texts = (rng.standard_normal((n, 24)).astype(np.float32) for n in (3, 4))
    images[0] *= -1e4  # probabilities of 0 and 1 are reached without an overflow
    expected = np.exp(2.3) * images.astype(np.float64) @ texts.T.astype(np.float64) - 9.5
    logits = model.logits(images, texts)
    assert logits.dtype == np.float32 and logits.shape == (3, 4)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-4)
    probabilities = model.probabilities(images, texts)
    assert probabilities.dtype == np.float32
    expected = 1 / (1 + np.exp(-expected.clip(-600, 600)))
    np.testing.assert_allclose(probabilities, expected, rtol=1e-4, atol=1e-30)


def test_exif_orientation_has_a_switch(model, saved):
    pixels = noise(8, 20)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: a viewer turns the picture clockwise
    photo = png(pixels, exif=exif)
    upright = np.rot90(pixels, -1)
    expected = model.embed_images(upright, **SMALL)
    np.testing.assert_allclose(model.embed_images(photo, **SMALL), expected, atol=1e-6)
    assert np.abs(model.embed_images(pixels, **SMALL) - expected).max() > 1e-3
    as_stored = load(saved["npz"], exif=False).preprocess
    np.testing.assert_array_equal(as_stored(photo, 16).pixels, model.preprocess(pixels, 16).pixels)


def unseen(hidden: int) -> ModelConfig:
    """Sizes that no other test has, so that nothing is compiled yet."""
    return ModelConfig(
        vision=dataclasses.replace(TINY.vision, mlp_dim=hidden),
        text=dataclasses.replace(TINY.text, mlp_dim=hidden),
    )


@pytest.mark.slow
def test_hundreds_of_shapes_compile_a_handful_of_programs():
    rng = np.random.default_rng(0)
    images = [noise(*rng.integers(1, 65, 2)) for _ in range(300)]
    fresh = tiny_embedder(unseen(40))
    with counted_compilations() as count:
        rows = list(fresh.stream_images(images, max_num_patches=16, batch_size=32))
        for n in (1, 3, 7, 13, 31):  # and any number of images
            fresh.embed_images(images[:n], max_num_patches=16, batch_size=32)
    assert 1 <= count.total() <= 6
    rows = np.stack(rows)
    assert rows.shape == (300, 24) and np.isfinite(rows).all()
    some = rng.choice(300, 12)
    again = fresh.embed_images([images[i] for i in some], max_num_patches=16, batch_size=32)
    np.testing.assert_allclose(rows[some], again, atol=1e-6)  # each in its own place


def test_texts_of_any_number_compile_a_handful_of_programs():
    fresh = tiny_embedder(unseen(44))
    with counted_compilations() as count:
        for n in (1, 2, 5, 9, 33, 70):
            texts = [f"photo number {i}" for i in range(n)]
            assert fresh.embed_texts(texts, batch_size=32).shape == (n, 24)
    assert 1 <= count.total() <= 3
    with counted_compilations() as count:  # another model of the same sizes
        rows = tiny_embedder(unseen(44), seed=1).embed_texts(texts, batch_size=32)
    assert count.total() == 0
    assert not np.allclose(rows, fresh.embed_texts(texts, batch_size=32), atol=0.1)


def test_streaming_draws_images_as_they_are_needed(model):
    drawn = 0

    def photos():
        nonlocal drawn
        for _ in range(200):
            drawn += 1
            yield noise(8, 8)

    stream = model.stream_images(photos(), **SMALL)
    assert drawn == 0
    for seen, _ in enumerate(stream, 1):
        assert drawn <= seen + 4 * SMALL["batch_size"]
        if seen == 100:
            break
    stream.close()
    assert drawn < 120


def test_bfloat16_is_close(model, saved):
    low = load(saved["npz"], TOKENIZER, dtype="bfloat16")
    images = [noise(9, 30), noise(16, 16), noise(50, 4)]
    for name, inputs in (("embed_images", images), ("embed_texts", TEXTS)):
        expected, found = (getattr(m, name)(inputs, batch_size=4) for m in (model, low))
        assert found.dtype == np.float32 and not np.array_equal(found, expected)
        assert np.sum(found * expected, axis=1).min() > 0.999


def test_wrong_options_are_refused(model):
    with pytest.raises(ValueError, match="dtype is 'float16'; expected 'float32' or 'bfloat16'"):
        inspect.unwrap(Towers.__init__)(object.__new__(Towers), TINY, {}, "float16")
    for embed, inputs in ((model.embed_texts, "a dog"), (model.embed_images, noise(8, 8))):
        with pytest.raises(ValueError, match="batch_size is 0"):
            embed(inputs, batch_size=0)
    with pytest.raises(ValueError, match="max_num_patches"):
        model.embed_images(noise(8, 8), max_num_patches=0)


def test_fixed_resolution(tmp_path):
    tiny_embedder(TINY_FIXED, tokenizer=False).save(tmp_path / "model.npz", "npz")
    fixed = load(tmp_path / "model.npz")
    assert fixed.config == TINY_FIXED
    images = [noise(1, 1), noise(1, 400), noise(33, 21)]
    features = fixed.image_features(images, max_num_patches=5, batch_size=4)
    assert features.valid.all() and (features.grid == 4).all()
    rows = fixed.embed_images(images, batch_size=4)
    np.testing.assert_allclose(rows, features.image, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


def test_the_module_is_the_same_model(model, saved):
    """`Embedder.model` and `from_pretrained` compute what the embedder computes, and train."""
    patches = as_patches(model, noise(9, 30), noise(16, 16))
    ids = model.tokenizer(TEXTS).ids
    for module in (model.model, SigLIP2.from_pretrained(saved["npz"])):
        assert isinstance(module, SigLIP2)
        features = nnx.jit(type(module).encode_image)(module, patches)
        np.testing.assert_allclose(features.image, model.embed_images(patches), atol=1e-6)
        found = nnx.jit(type(module).encode_text)(module, ids)
        np.testing.assert_allclose(found, model.embed_texts(TEXTS), atol=1e-6)
        params = flatten(nnx.to_pure_dict(nnx.state(module, nnx.Param)))
        assert params.keys() == flatten(model.params).keys()


def test_training_the_module_leaves_the_embedder_as_it_is(model):
    module = model.model
    module.b[...] = module.b[...] + 1
    assert model.bias == -9.5 and float(model.model.b[...]) == -9.5


def test_the_module_runs_as_it_is_told(saved):
    module = SigLIP2.from_pretrained(saved["hf"], compute=Compute(dtype="bfloat16"))
    blocks = module.vision.encoder.blocks
    assert blocks.attn.dtype == "bfloat16" and blocks.attn.query.kernel.dtype == "float32"
    with pytest.raises(OSError, match="there is no file or directory"):
        SigLIP2.from_pretrained(saved["npz"].with_name("none.npz"))
