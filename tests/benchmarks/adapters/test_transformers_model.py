"""One set of weights twice, in our harness: as ours, and as transformers opens our export."""

import dataclasses
import sys

import numpy as np
import pytest
from models.builders import TINY
from PIL import Image

from siglip2_jax import Embedder
from siglip2_jax.benchmarks.adapters.transformers_inputs import to_images
from siglip2_jax.benchmarks.adapters.transformers_model import open_transformers
from siglip2_jax.data.sources import Folder
from siglip2_jax.evals.retrieval import Retrieval
from siglip2_jax.evals.zero_shot import ZeroShot
from siglip2_jax.fingerprint import fingerprint
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.preprocess.patches import patchify
from siglip2_jax.preprocess.tokenizer import Tokenizer, TokenizerError
from siglip2_jax.testing import random_params

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

BUDGET = 48


@pytest.fixture(scope="module", params=["naflex", "fixed"])
def pair(request, shared, tmp_path_factory):
    """Our model, its directory, and transformers' model."""
    tokenizer = Tokenizer.load(shared / "data" / "tokenizer" / "small_8k.model")
    changes = {"patch_size": 16, "grid": 4, "image_size": None}
    if request.param == "fixed":
        changes = {"patch_size": 14, "grid": 4, "image_size": 60}  # 4 pixels fill no patch
    config = dataclasses.replace(
        TINY,
        vision=dataclasses.replace(TINY.vision, **changes),
        text=dataclasses.replace(TINY.text, vocab_size=tokenizer.vocab_size),
    )
    preprocess = ImagePreprocessor(config.vision.patch_size, config.vision.image_size, "hf")
    ours = Embedder(config, random_params(config), preprocess, tokenizer)
    place = tmp_path_factory.mktemp(request.param) / "hf"
    ours.save(place, "hf")
    return ours, place, open_transformers(place)


@pytest.fixture(scope="module")
def photos(shared):
    return sorted((shared / "data" / "flickr8k_1k" / "images").iterdir())[:5]


def close(found, expected):
    assert found.dtype == np.float32 and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_bundle_is_the_same(pair):
    ours, _, theirs = pair
    assert isinstance(theirs, Embedder) and theirs.config == ours.config
    assert theirs.variant is None and theirs.dtype == "float32" and theirs.mesh is None
    assert (theirs.temperature, theirs.bias) == (ours.temperature, ours.bias)
    assert theirs.preprocess.mode == "hf" and theirs.text_norm == "unicode_lower"
    assert theirs.preprocess.num_tokens(BUDGET) == ours.preprocess.num_tokens(BUDGET)


def test_identity_is_of_content(pair):
    ours, place, theirs = pair
    first = fingerprint(theirs.identity())
    assert fingerprint(open_transformers(place).identity()) == first
    assert fingerprint(ours.identity()) != first
    others = open_transformers(place, ours.tokenizer), open_transformers(place, exif=False)
    assert len({first, *(fingerprint(other.identity()) for other in others)}) == 3
    weight = others[0]._model.text_model.final_layer_norm.weight
    before = fingerprint(others[0].identity())
    with torch.no_grad():
        weight[3] += 1e-3
    assert fingerprint(others[0].identity()) != before


def test_embeddings_are_close(pair, photos):
    ours, _, theirs = pair
    images = [theirs.embed_images(photos, max_num_patches=BUDGET)]
    images.append(ours.embed_images(photos, max_num_patches=BUDGET))
    close(*images)
    assert np.ptp(images[0] @ images[0].T) > 1e-3  # they do differ
    texts = ["A Dog runs .", "two men", "word " * 100, ""]
    texts = [model.embed_texts(texts) for model in (theirs, ours)]
    close(*texts)
    close(theirs.embed_texts("two men"), texts[0][1:2])
    assert theirs.embed_texts([]).shape == (0, 48)
    np.testing.assert_allclose(
        theirs.probabilities(images[0], texts[0]),
        ours.probabilities(images[1], texts[1]),
        rtol=1e-3,
    )


@pytest.mark.parametrize(
    ("merge", "problem"), [(1, "open it with siglip2_jax.load"), (2, "knows 1 alone")]
)
def test_tokens_of_blocks_are_refused(pair, photos, merge, problem):
    _, _, theirs = pair
    with pytest.raises(ValueError, match=problem):
        theirs.tokens_for_vlm(photos, layers=(-1,), merge=merge, max_num_patches=BUDGET)


def test_features_are_close(pair, photos):
    ours, _, theirs = pair
    found, expected = (x.image_features(photos, max_num_patches=BUDGET) for x in (theirs, ours))
    np.testing.assert_array_equal(found.grid, expected.grid)
    np.testing.assert_array_equal(found.valid, expected.valid)
    for name in ("tokens", "pooled", "image"):
        valid = found.valid if name == "tokens" else np.ones(len(photos), bool)
        x, y = (getattr(features, name)[valid] for features in (found, expected))
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-4)
    plain = theirs.embed_images(photos, max_num_patches=BUDGET, normalize=False)
    np.testing.assert_allclose(plain, found.pooled, rtol=0, atol=1e-5)


def test_our_numbers_are_those_of_transformers(pair, shared):
    """To the last digit: the same images and captions are found by both."""
    ours, _, theirs = pair
    caltech = Folder(
        str(shared / "data" / "caltech101_20"),
        captions="labels.jsonl",
        where=(("split", "val"),),
        template="{name}",
    )
    flickr = Folder(str(shared / "data" / "flickr8k_1k"), where=(("split", "val"),))
    for evaluator in (
        ZeroShot(source=caltech, canonical=True, ties="first", max_num_patches=BUDGET),
        Retrieval(source=flickr, max_num_patches=BUDGET),
    ):
        found = evaluator(theirs)
        assert found == evaluator(ours) and max(found.values()) > 0


def test_unreadable_photos_are_told(pair, photos):
    theirs = pair[2]
    with pytest.warns(UserWarning, match="not an image file .* its embedding is NaN"):
        rows = theirs.embed_images([photos[0], b"no photo", photos[1]], max_num_patches=BUDGET)
    assert np.isnan(rows).all(axis=1).tolist() == [False, True, False]
    found = list(theirs.stream_images([b"no photo", photos[0]], BUDGET))
    assert isinstance(found[0], ValueError) and found[1].shape == (48,)
    with pytest.raises(ValueError, match="not an image file"):
        theirs.image_features([b"no photo"])


def test_a_tokenizer_of_ours_stands_in(pair, shared, tmp_path):
    ours, place, theirs = pair
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        (tmp_path / name).symlink_to(place / name)
    bare = open_transformers(tmp_path)
    with pytest.raises(TokenizerError, match="loaded without a tokenizer"):
        bare.embed_texts("two men")
    model = open_transformers(tmp_path, ours.tokenizer)
    assert model.text_norm == "reference"
    np.testing.assert_array_equal(model.embed_texts("Two men"), theirs.embed_texts("two men"))
    cased = open_transformers(tmp_path, Tokenizer(ours.tokenizer.model_proto, text_norm="none"))
    assert np.abs(cased.embed_texts("TWO MEN") - theirs.embed_texts("TWO MEN")).max() > 1e-3
    (tmp_path / "tokenizer.model").write_bytes(b"nothing")
    assert open_transformers(tmp_path).tokenizer is None


def test_lower_case_is_a_choice(pair, tmp_path):
    """A tokenizer that leaves case alone, as in directories of older versions."""
    _, place, theirs = pair

    class Cased:
        unk_token_id = 3

        def __call__(self, texts, **_):
            ids = [[min(map(ord, text or " "))] * 64 for text in texts]
            return transformers.BatchEncoding({"input_ids": ids})

    model = open_transformers(place)
    model._texts = Cased()
    np.testing.assert_array_equal(model.embed_texts(["Ab", "aa"]), model.embed_texts(["ab", "aa"]))
    model.text_norm = "none"
    assert np.abs(np.diff(model.embed_texts(["A", "a"]), axis=0)).max() > 1e-3


def test_clear_errors(pair, tmp_path, monkeypatch):
    place = pair[1]
    with pytest.raises(OSError, match="nowhere cannot be read .* give a directory"):
        open_transformers(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="a model of the type 'bert', expected 'siglip'"):
        open_transformers(tmp_path)
    other = Tokenizer(pair[0].tokenizer.model_proto)
    other.vocab_size = 7000
    with pytest.raises(TokenizerError, match="give the tokenizer that the model was trained with"):
        open_transformers(place, other)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match="need torch and transformers; pip install"):
        open_transformers(place)


def test_missing_tensors_and_other_sizes_are_refused(pair, tmp_path):
    from safetensors.numpy import load_file, save_file

    ours, place, _ = pair
    for file in place.iterdir():
        if file.name != "model.safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(place / "model.safetensors")
    del tensors["text_model.head.bias"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 tensors, such as text_model.head.bias"):
        open_transformers(tmp_path)
    if ours.config.native_resolution:
        return
    (tmp_path / "model.safetensors").write_bytes((place / "model.safetensors").read_bytes())
    words = (place / "preprocessor_config.json").read_text().replace("60", "56")
    (tmp_path / "preprocessor_config.json").write_text(words)
    with pytest.raises(ValueError, match="the model reads 60 x 60 pixels"):
        open_transformers(tmp_path)


def test_pictures_are_put_together():
    picture = np.asarray(Image.effect_noise((12, 12), 80).convert("RGB"), np.float32)
    found = to_images(patchify(picture, 4)[None], 4)
    np.testing.assert_array_equal(found[0], picture.transpose(2, 0, 1))
