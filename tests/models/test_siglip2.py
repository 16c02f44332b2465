"""The model agrees with a float64 restatement, whatever the grid, padding, batch or schedule."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import numpy_reference as reference
from models.builders import TINY, patches, with_vision

from siglip2_jax.models.compute import Compute, run_blocks
from siglip2_jax.models.siglip2 import (
    abstract_model,
    flatten,
    init_params,
    normalize,
    unflatten,
)
from siglip2_jax.testing import random_params

GRIDS = [(8, 8), (2, 32), (32, 2), (1, 64), (7, 9), (1, 1), (70, 1)]


@functools.cache  # a program is compiled once per shape, whatever the number of tests
def programs(config, compute):
    graphdef, _ = abstract_model(config, compute)
    return (
        jax.jit(lambda params, image: nnx.merge(graphdef, params).encode_image(image)),
        jax.jit(lambda params, ids: nnx.merge(graphdef, params).encode_text(ids)),
    )


def encode(config, params, image=None, ids=None, **compute):
    encode_image, encode_text = programs(config, Compute(**compute))
    return (
        None if image is None else encode_image(params, image),
        None if ids is None else encode_text(params, ids),
    )


@pytest.fixture(scope="module")
def params():
    return random_params(TINY)


def test_images_equal_the_float64_restatement(params):
    image = patches(GRIDS, 80)
    features, _ = encode(TINY, params, image)
    double = jax.tree.map(lambda x: np.asarray(x, np.float64), params["vision"])
    for i, (rows, columns) in enumerate(GRIDS):
        n = rows * columns
        tokens, pooled, unit = reference.encode_image(image.pixels[i, :n], rows, columns, double)
        np.testing.assert_allclose(features.tokens[i, :n], tokens, atol=1e-5)
        np.testing.assert_allclose(features.pooled[i], pooled, atol=1e-5)
        np.testing.assert_allclose(features.image[i], unit, atol=2e-6)
    np.testing.assert_array_equal(features.grid, GRIDS)


@pytest.mark.parametrize("pool", ["last", "map"])
def test_texts_equal_the_float64_restatement(pool):
    config = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, pool=pool))
    params = random_params(config)
    assert ("pool" in params["text"]) == (pool == "map")
    ids = np.random.default_rng(1).integers(0, 97, (4, 64), np.int32)
    _, text = encode(config, params, ids=ids)
    double = jax.tree.map(lambda x: np.asarray(x, np.float64), params["text"])
    expected = np.stack([reference.encode_text(row, double) for row in ids])
    np.testing.assert_allclose(text, expected, atol=2e-6)


def test_logits_are_scaled_cosines_plus_bias(params):
    graphdef, _ = abstract_model(TINY)
    image, text = np.random.default_rng(2).standard_normal((2, 5, 48), np.float32)
    logits = nnx.merge(graphdef, params).logits(jnp.asarray(image), jnp.asarray(text))
    np.testing.assert_allclose(logits, np.exp(2.3) * image @ text.T - 9.5, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fill", [0.0, np.nan, np.inf, -1e30])
def test_padding_and_its_content_never_matter(params, fill):
    tight = patches([(4, 5)], 20)
    padded = patches([(4, 5)], 64, fill=fill)
    far = np.where(padded.valid[..., None], padded.yx, 12345)
    padded = dataclasses.replace(padded, yx=far)
    expected, _ = encode(TINY, params, tight)
    found, _ = encode(TINY, params, padded)
    np.testing.assert_allclose(found.image, expected.image, atol=1e-6)
    np.testing.assert_allclose(found.pooled, expected.pooled, atol=1e-6)
    np.testing.assert_allclose(found.tokens[:, :20], expected.tokens, atol=2e-6)
    assert np.isfinite(found.tokens).all()


def test_padding_has_no_gradient_and_gives_no_nan(params):
    graphdef, _ = abstract_model(TINY)

    @jax.jit
    @jax.grad
    def gradient(params, image):
        return jnp.sum(nnx.merge(graphdef, params).encode_image(image).image[:, 0])

    grids = [(4, 5), (2, 3)]
    clean, dirty = (gradient(params, patches(grids, 32, fill=fill)) for fill in (0.0, np.nan))
    for path, x in flatten(clean).items():
        np.testing.assert_allclose(flatten(dirty)[path], x, atol=1e-6, err_msg=path)


def test_an_image_without_patches_is_finite(params):
    features, _ = encode(TINY, params, patches([(0, 0), (2, 2)], 4))
    assert all(np.isfinite(x).all() for x in (features.tokens, features.image))


def test_batch_composition_does_not_matter(params):
    together, _ = encode(TINY, params, patches(GRIDS, 80))
    for i in (0, 3, 6):
        one = jax.tree.map(lambda x, i=i: x[i : i + 1], patches(GRIDS, 80))
        alone, _ = encode(TINY, params, one)
        np.testing.assert_allclose(alone.image[0], together.image[i], atol=1e-6)


def test_fixed_resolution_is_the_case_where_all_patches_are_valid(params):
    fixed = with_vision(TINY, image_size=32)
    image = patches([(8, 8)], 64)
    np.testing.assert_array_equal(
        encode(fixed, params, image)[0].image, encode(TINY, params, image)[0].image
    )


def value_and_gradient(params, compute):
    image = jax.tree.map(jnp.asarray, patches([(4, 4), (2, 6)], 16))
    ids = jnp.full((2, 64), 5, jnp.int32)

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        model = nnx.merge(abstract_model(TINY, compute)[0], params)
        features = model.encode(image, ids)
        return jnp.sum(model.logits(features.image, features.text) ** 2)

    return loss(params)


@pytest.mark.parametrize(
    "compute",
    [
        Compute(remat="full"),
        Compute(remat="dots"),
        Compute(scan=False, remat=("qkv", "attn_out", "x_mid", "mlp_pre")),
        Compute(scan=False, remat=0.5),
        Compute(remat=0.5),
    ],
    ids=str,
)
@pytest.mark.slow
def test_schedules_agree_in_value_and_gradient(params, plain, compute):
    found = value_and_gradient(params, compute)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, plain)


def backward(compute, count):
    """The program of the image tower's gradient, as text."""
    graphdef, shapes = abstract_model(TINY, compute)

    def loss(params, image):
        return nnx.merge(graphdef, params).encode_image(image).image.sum()

    return jax.jit(jax.grad(loss)).lower(shapes, patches([(2, 2)], count)).as_text()


@pytest.mark.parametrize(("share", "again"), [(0.0, 0), (0.25, 1), (0.6, 2), (1.0, 4)])
def test_a_share_of_the_blocks_is_computed_again(share, again):
    def program(x):
        compute = Compute(scan=False, remat=share)
        return run_blocks(lambda x, block: (x * block, None), x, jnp.ones(4), compute)

    names = [equation.primitive.name for equation in jax.make_jaxpr(program)(1.0).eqns]
    blocks = [name for name in names if name in ("remat2", "checkpoint", "mul")]
    assert [name == "mul" for name in blocks] == [i >= again for i in range(4)]


@pytest.mark.slow
def test_short_sequences_keep_other_activations():
    by_length = Compute(remat="full", remat_up_to=((16, "none"), (32, "dots")))
    programs = {remat: backward(Compute(remat=remat), 32) for remat in ("none", "dots", "full")}
    assert len(set(programs.values())) == 3
    for count, remat in ((16, "none"), (17, "dots"), (32, "dots"), (33, "full")):
        assert backward(by_length, count) == backward(Compute(remat=remat), count)
    with pytest.raises(ValueError, match="is 1.5, expected a share of the blocks from 0 to 1"):
        Compute(remat=1.5)
    with pytest.raises(ValueError, match="names 'mlp', which blocks have not; expected some of"):
        Compute(remat=("qkv", "mlp"))
    with pytest.raises(ValueError, match="lengths from 1 up in growing order, got"):
        Compute(remat_up_to=((32, "dots"), (16, "none")))


@pytest.fixture(scope="module")
def plain(params):
    return value_and_gradient(params, Compute())


def test_bfloat16_keeps_the_direction_with_outlier_channels():
    """Released towers have a few channels far above the rest; low precision must survive them."""
    params = random_params(TINY)
    rng = np.random.default_rng(0)
    for tower in ("vision", "text"):
        table = params[tower]["pos"]["table"].copy()
        table[..., [3, 17]] *= 30.0
        params[tower]["pos"]["table"] = table
        scale = params[tower]["encoder"]["blocks"]["ln1"]["scale"].copy()
        scale[:, [3, 17]] *= 5.0
        params[tower]["encoder"]["blocks"]["ln1"]["scale"] = scale
    image, ids = patches(GRIDS, 80), rng.integers(0, 97, (8, 64), np.int32)
    full = encode(TINY, params, image, ids)
    half = encode(TINY, params, image, ids, dtype="bfloat16")
    assert half[0].image.dtype == jnp.float32
    for a, b in ((full[0].image, half[0].image), (full[1], half[1])):
        assert np.min(np.sum(np.asarray(a) * np.asarray(b), axis=1)) >= 0.999


def test_other_text_lengths_are_refused(params):
    with pytest.raises(ValueError, match="have 12 tokens, the text tower reads exactly 64"):
        encode(TINY, params, ids=np.zeros((1, 12), np.int32))


@pytest.mark.slow
def test_fresh_parameters_start_where_the_paper_says():
    params = init_params(TINY, jax.random.key(0))
    abstract = abstract_model(TINY)[1]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, abstract)
    assert params["t"] == np.float32(np.log(10)) and params["b"] == -10
    flat = flatten(params)
    blocks = flat["vision/encoder/blocks/attn/query/kernel"]
    assert not np.array_equal(blocks[0], blocks[1])
    bound = np.sqrt(6 / (48 + 48))  # xavier-uniform
    assert 0.9 * bound < np.abs(blocks).max() <= bound
    assert 0.8 < flat["vision/pos/table"].std() * np.sqrt(48) < 1.2
    assert all(x.dtype == np.float32 and not x.aval.weak_type for x in flat.values())


def test_paths_round_trip():
    _, shapes = abstract_model(TINY)
    assert jax.tree.structure(unflatten(flatten(shapes))) == jax.tree.structure(shapes)
    assert "vision/encoder/blocks/attn/query/kernel" in flatten(shapes)


def test_normalize_survives_zero():
    np.testing.assert_array_equal(normalize(jnp.zeros((1, 3))), np.zeros((1, 3)))
