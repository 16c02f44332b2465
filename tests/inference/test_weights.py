"""Small weights: what is kept, how products with them are made, and that nobody mixes them up."""

import inspect
from typing import Any

import jax
import numpy as np
import pytest
from inference.samples import noise

from siglip2_jax import Embedder, load
from siglip2_jax.benchmarks.dense.blocks import block_features
from siglip2_jax.cli import main
from siglip2_jax.cli.demo import MAX_NUM_PATCHES
from siglip2_jax.data.sources import Folder
from siglip2_jax.demo import HERE, shipped_examples
from siglip2_jax.evals.retrieval import Retrieval
from siglip2_jax.inference.weights import quantise
from siglip2_jax.models.kernels.int8 import Int8, matmul_int8
from siglip2_jax.models.siglip2 import flatten, unflatten
from siglip2_jax.testing import TINY, TINY_FIXED, random_params, tiny_embedder

SMALL: dict[str, Any] = {"max_num_patches": 16, "batch_size": 4}
IMAGES = [noise(9, 30), noise(16, 16), noise(50, 4)]
TEXTS = ["a dog on a beach", "Two CATS", "", "é"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model"
    tiny_embedder().save(path)
    return path


def cosines(one: Embedder, other: Embedder) -> np.ndarray:
    images = (m.embed_images(IMAGES, **SMALL) for m in (one, other))
    texts = (m.embed_texts(TEXTS, batch_size=4) for m in (one, other))
    return np.concatenate([np.sum(np.multiply(*pair), 1) for pair in (images, texts)])


def test_every_output_has_the_scale_of_its_largest_weight():
    x = np.random.default_rng(0).normal(size=(2, 6, 3, 4)).astype(np.float32)  # depth, in, heads
    x[1, :, 2, 1] = 0
    small = quantise(x, lead=1, last=2)
    assert small.values.shape == x.shape and small.values.dtype == np.int8
    assert small.scale.shape == (2, 12) and small.scale.dtype == np.float32
    values, scale = np.asarray(small.values), np.asarray(small.scale).reshape(2, 3, 4)
    for layer, head, channel in np.ndindex(2, 3, 4):
        column = x[layer, :, head, channel]
        step = np.abs(column).max() / 127
        assert scale[layer, head, channel] == pytest.approx(step, rel=1e-6)
        assert np.abs(values[layer, :, head, channel]).max() == (127 if step else 0)
        error = values[layer, :, head, channel] * step - column
        assert np.abs(error).max() <= step / 2 * (1 + 1e-5)
    whole = values * scale[:, None]
    np.testing.assert_allclose(small.astype(np.float32), whole, rtol=1e-6)


def test_products_are_those_of_whole_numbers():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 5, 40)).astype(np.float32) * 3
    x[1, 2] = 0  # a token of zeros gives zeros, not NaN
    kernel = quantise(rng.normal(size=(8, 5, 7)).astype(np.float32), lead=0, last=1)
    largest = np.abs(x).max(-1, keepdims=True)
    tokens = np.rint(x * np.float32(127) / np.where(largest == 0, 1, largest)).astype(np.int64)
    sums = tokens @ np.asarray(kernel.values).reshape(40, 7).astype(np.int64)
    expected = sums * (largest / 127) * np.asarray(kernel.scale)
    # A token half-way between two numbers may be rounded to either.
    step = (largest / 127) * np.abs(np.asarray(kernel.values)).max() * np.asarray(kernel.scale)
    found = np.asarray(jax.jit(matmul_int8)(x, kernel))
    assert np.mean(np.abs(found - expected) <= 1e-5 * np.abs(expected).max()) > 0.9
    assert (np.abs(found - expected) <= step * 1.01).all() and (found[1, 2] == 0).all()


@pytest.mark.parametrize("config", [TINY, TINY_FIXED], ids=["native", "fixed"])
@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_kernels_and_the_token_table_become_small_and_nothing_else(config, weights, tmp_path):
    tiny_embedder(config, tokenizer=False).save(tmp_path / "model")
    expected = flatten(random_params(config))
    found = flatten(load(tmp_path / "model", weights=weights).params)
    small = {p for p in expected if p.endswith("/kernel") or p == "text/embed/table"}
    assert len(small) > 20 and "text/head/kernel" in small
    for path, x in expected.items():
        if path not in small:
            assert found[path].dtype == np.float32, path
            np.testing.assert_array_equal(found[path], x)
        elif weights == "bfloat16":
            assert found[path].dtype == "bfloat16" and found[path].shape == x.shape, path
        else:
            values, scale = found[f"{path}/values"], found[f"{path}/scale"]
            assert values.dtype == np.int8 and values.shape == x.shape, path
            bias = expected.get(f"{path.removesuffix('/kernel')}/bias")
            assert scale.size == (len(x) if bias is None else bias.size), path


@pytest.mark.slow
def test_bfloat16_weights_are_the_model_with_rounded_parameters(saved):
    small = load(saved, weights="bfloat16")
    params = flatten(small.params)
    whole = load(saved)
    whole.params = unflatten({path: x.astype(np.float32) for path, x in params.items()})
    for name, inputs in (("embed_images", IMAGES), ("embed_texts", TEXTS)):
        found, expected = (getattr(m, name)(inputs, batch_size=4) for m in (small, whole))
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert 0.999 < cosines(small, load(saved)).min() < 0.9999999


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_int8_is_close_to_the_model_with_rounded_parameters(saved, dtype):
    """It differs by the rounding of tokens alone: what is closer is the same weights."""
    small = load(saved, weights="int8", dtype=dtype)
    rounded = load(saved, dtype=dtype)
    rounded.params = jax.tree.map(
        lambda x: x.astype(np.float32) if isinstance(x, Int8) else x,
        small.params,
        is_leaf=lambda x: isinstance(x, Int8),
    )
    assert 0.9995 < cosines(small, rounded).min() < 0.9999999
    assert 0.999 < cosines(small, load(saved)).min()
    # Tokens, pooled vectors and the blocks that dense tasks read come from the same program.
    features = small.image_features(IMAGES, **SMALL)
    np.testing.assert_allclose(features.image, small.embed_images(IMAGES, **SMALL), atol=1e-6)
    patches = small.preprocess(IMAGES, 16)
    (block,) = block_features(small, patches, 1)
    tokens, expected = block.pooled, small.embed_images(patches, normalize=False)
    np.testing.assert_allclose(tokens, expected, rtol=2e-2, atol=2e-3)


@pytest.mark.slow
def test_several_devices_give_the_same_rows(saved):
    alone, spread = load(saved, weights="int8"), load(saved, weights="int8")
    spread.replicate_over(jax.devices())
    assert len(jax.devices()) > 1 and spread.weights == "int8"
    np.testing.assert_allclose(cosines(alone, spread), 1, atol=1e-6)


def test_a_model_knows_its_weights(saved):
    models = {name: load(saved, weights=name) for name in ("float32", "bfloat16", "int8")}
    identities = {name: model.identity() for name, model in models.items()}
    for name, identity in identities.items():
        assert models[name].weights == identity["weights_dtype"] == name
    assert len({identity["weights"] for identity in identities.values()}) == 3
    sizes = {name: sum(x.nbytes for x in flatten(m.params).values()) for name, m in models.items()}
    assert sizes["int8"] < 0.75 * sizes["bfloat16"] < 0.5 * sizes["float32"]


def test_what_cannot_be_is_refused_in_a_sentence(saved, tmp_path):
    with pytest.raises(ValueError, match="weights is 'int4'; expected 'float32', 'bfloat16' or"):
        inspect.unwrap(load)(saved, weights="int4")
    for name in ("bfloat16", "int8"):
        with pytest.raises(ValueError, match=f"rounded to {name}.*load it with weights='float32'"):
            load(saved, weights=name).save(tmp_path / "again")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_rows_of_other_weights_are_not_mixed(saved, tmp_path, capsys):
    texts = tmp_path / "texts.txt"
    texts.write_text("a dog\na cat\n")
    embed = ["embed", str(saved), "--texts", str(texts), "--out", str(tmp_path / "e.npz")]
    assert main([*embed, "--weights", "int8"]) == main([*embed, "--weights", "int8"]) == 0
    capsys.readouterr()
    assert main(embed) == 2
    error = capsys.readouterr().err
    assert "was made with weights_dtype 'int8' (now 'float32')" in error
    assert "Traceback" not in error


@pytest.mark.slow
def test_a_trained_model_retrieves_as_before(demo):
    whole = load(demo)
    examples = shipped_examples()
    files, captions = [x.image for x in examples], [x.captions[0] for x in examples]
    source = Folder(str(HERE), captions="examples.jsonl", images="photos")
    measure = Retrieval(source=source, max_num_patches=MAX_NUM_PATCHES)
    before = measure(whole)
    assert before["image_to_text@10"] > 0.5  # of 62 images among 310 captions, where chance is 16 %
    for name in ("bfloat16", "int8"):
        small = load(demo, weights=name)
        pairs = (
            [m.embed_images(files, max_num_patches=MAX_NUM_PATCHES) for m in (whole, small)],
            [m.embed_texts(captions) for m in (whole, small)],
        )
        for one, other in pairs:
            assert np.sum(one * other, 1).min() > 0.999
        for metric, value in measure(small).items():
            assert value >= before[metric] - 0.05, (name, metric)
