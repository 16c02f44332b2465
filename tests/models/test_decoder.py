"""The decoder against a float64 restatement; what each position may see; decoding step by step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import numpy_reference as reference
from models.builders import TINY

from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import two_towers
from siglip2_jax.models.decoder import Decoder, DecoderConfig, decoder_config
from siglip2_jax.models.siglip2 import flatten, unflatten
from siglip2_jax.sharding import device_put_global, make_mesh, param_shardings, put_batch

CONFIG = DecoderConfig(
    width=20, depth=2, mlp_dim=36, num_heads=2, vocab_size=17, length=6, memory_dim=28
)
B, R, S, N = 4, 3, 6, 5
PARALLEL = np.array([[True, False, False], [False] * 3, [True, False, True], [False, True, False]])


PLAIN = Compute()


def abstract(compute: Compute = PLAIN):
    module = nnx.eval_shape(lambda: Decoder(CONFIG, compute=compute, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(module)
    return graphdef, flatten(nnx.to_pure_dict(state))


@functools.cache
def params() -> dict[str, np.ndarray]:
    """Parameters in which nothing is zero or one, by path."""
    rng = np.random.default_rng(0)
    made = {}
    for path, leaf in abstract()[1].items():
        x = rng.standard_normal(leaf.shape, np.float32)
        scale = leaf.shape[-2] ** -0.5 if path.endswith("kernel") else 0.2
        made[path] = x * np.float32(scale) + np.float32(path.endswith("scale"))
    return made


@functools.cache
def inputs() -> tuple[np.ndarray, ...]:
    """Ids [B, R, S] padded on the right, image tokens with NaN in the padding, and which exist."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(2, S + 1, (B, R, 1))
    ids = np.where(np.arange(S) < lengths, rng.integers(1, 17, (B, R, S)), 0).astype(np.int32)
    valid = np.arange(N) < np.array([[5], [3], [1], [4]])
    tokens = rng.standard_normal((B, N, 28), np.float32)
    return ids, np.where(valid[..., None], tokens, np.float32(np.nan)), valid


def read(params, ids, tokens, valid, parallel, compute=PLAIN):
    return nnx.merge(abstract(compute)[0], unflatten(params))(ids, tokens, valid, parallel)


run = jax.jit(read, static_argnames="compute")


@functools.partial(jax.jit, static_argnames="compute")
@functools.partial(jax.value_and_grad, argnums=(0, 2))
def derivatives(params, ids, tokens, valid, parallel, weights, compute=PLAIN):
    """A weighted sum of what is read, and its derivatives by parameters and image tokens."""
    return jnp.sum(weights * read(params, ids, tokens, valid, parallel, compute))


@functools.cache
def hidden() -> np.ndarray:
    return np.asarray(run(params(), *inputs(), PARALLEL))


def attention(queries, memory, p, seen):
    """The restatement's attention with no biases, each query on its own keys."""
    p = {k: {"bias": np.zeros((2, 10) if k != "out" else 20), **v} for k, v in p.items()}
    rows = [reference.attention(q[None], memory[s], p) for q, s in zip(queries, seen, strict=True)]
    return np.concatenate(rows)


def restated(ids, tokens, parallel, p):
    """One caption of one image, all of whose tokens are valid."""
    before = np.concatenate([[0], ids[:-1]])
    x = p["embed"]["table"][np.full(S, 17) if parallel else before] + p["pos"]["table"]
    seen = np.ones((S, S), bool) if parallel else np.tril(np.ones((S, S), bool))
    every = np.ones((S, len(tokens)), bool)
    for i in range(CONFIG.depth):
        block = reference.at_layer(p["blocks"], i)
        y = reference.layer_norm(x, block["ln1"])
        x = x + attention(y, y, block["attn"], seen)
        x = x + attention(reference.layer_norm(x, block["ln2"]), tokens, block["cross"], every)
        x = x + reference.mlp(reference.layer_norm(x, block["ln3"]), block["mlp"])
    return reference.layer_norm(x, p["norm"])


def test_equals_the_float64_restatement():
    ids, tokens, valid = inputs()
    double = unflatten({path: x.astype(np.float64) for path, x in params().items()})
    assert hidden().dtype == np.float32
    for b, r in np.ndindex(B, R):
        expected = restated(ids[b, r], tokens[b][valid[b]], PARALLEL[b, r], double)
        np.testing.assert_allclose(hidden()[b, r], expected, atol=2e-5)


def test_logits():
    module = nnx.merge(abstract()[0], jax.tree.map(jnp.asarray, unflatten(params())))
    expected = hidden() @ params()["out/kernel"].astype(np.float64)
    np.testing.assert_allclose(module.logits(jnp.asarray(hidden())), expected, atol=1e-5)


def test_a_target_changes_only_later_positions_of_its_own_causal_caption():
    ids = inputs()[0].copy()
    ids[:, :, 3] = (ids[:, :, 3] + 5) % 17
    changed = np.asarray(run(params(), ids, *inputs()[1:], PARALLEL)) != hidden()
    at = changed.any(-1)
    np.testing.assert_array_equal(at, ~PARALLEL[..., None] & (np.arange(S) > 3))


def test_padding_and_its_content_never_matter():
    ids, tokens, valid = inputs()
    tight = run(params(), ids[3:], tokens[3:, :4], valid[3:, :4], PARALLEL[3:])
    np.testing.assert_allclose(hidden()[3:], tight, atol=1e-5)

    gradient = derivatives(params(), *inputs(), PARALLEL, np.ones_like(hidden()))[1][1]
    assert np.isfinite(gradient).all()
    assert not gradient[~valid].any() and gradient[valid].any(-1).all()
    nothing = run(params(), ids, tokens, np.zeros_like(valid), PARALLEL)
    assert np.isfinite(nothing).all()


def test_captions_of_an_image_do_not_see_each_other():
    for r in range(R):
        one = run(params(), inputs()[0][:, r : r + 1], *inputs()[1:], PARALLEL[:, r : r + 1])
        np.testing.assert_allclose(one[:, 0], hidden()[:, r], atol=1e-5)


@pytest.mark.parametrize(
    "compute",
    [
        Compute(remat="full"),
        Compute(scan=False, remat=("qkv", "attn_out", "x_mid", "mlp_pre")),
    ],
    ids=str,
)
@pytest.mark.slow
def test_schedules_agree_in_value_and_gradient(compute):
    weights = np.random.default_rng(2).standard_normal(hidden().shape).astype(np.float32)
    found, plain = (
        jax.tree.leaves(derivatives(params(), *inputs(), PARALLEL, weights, compute=kind))
        for kind in (compute, PLAIN)
    )
    for a, b in zip(found, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * max(np.abs(b).max(), 1))


def test_image_keys_are_found_once_a_layer():
    """However many captions there are, the products with image tokens are of [B, N] rows."""
    text = str(jax.make_jaxpr(run)(params(), *inputs(), PARALLEL))
    assert text.count(f"f32[{B},{N},20] = dot_general") == 2
    assert f"[{B * R},{N},20]" not in text
    assert f"[{B * R},{N},2,10]" not in text


def test_bfloat16():
    found = run(params(), *inputs(), PARALLEL, compute=Compute(dtype="bfloat16"))
    assert found.dtype == jnp.float32
    assert 0 < np.abs(found - hidden()).mean() < 0.02


def by_steps(params, ids, tokens, valid):
    """The vectors of one causal caption an image, read one token at a time."""
    module = nnx.merge(abstract()[0], unflatten(params))
    memory = module.image_memory(tokens, valid)

    def step(cache, now):
        found, cache = module.extend(*now, cache, memory, valid)
        return cache, found

    before = jnp.pad(ids[:, :-1], ((0, 0), (1, 0))).T
    steps = before, jnp.arange(S)
    return jax.lax.scan(step, module.empty_cache(len(ids)), steps)[1].swapaxes(0, 1)


@pytest.mark.parametrize("shape", [None, (2, 2)], ids=str)
def test_step_by_step(shape):
    """The same as reading the whole caption, on a mesh too."""
    ids, tokens, valid = inputs()
    expected = run(params(), ids, tokens, valid, np.zeros((B, R), bool))[:, 1]
    arguments = params(), (ids[:, 1], tokens, valid)
    if shape is None:
        found = jax.jit(by_steps)(arguments[0], *arguments[1])
    else:
        mesh = make_mesh(shape[0], jax.devices()[: shape[0] * shape[1]])
        with jax.set_mesh(mesh):
            shardings = param_shardings(mesh, arguments[0])
            placed = {
                path: device_put_global(x, shardings[path]) for path, x in arguments[0].items()
            }
            found = jax.jit(by_steps)(placed, *put_batch(arguments[1], mesh))
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_sizes_follow_the_text_tower():
    config = decoder_config(two_towers("g-opt", patch_size=16, image_size=256))
    assert config == DecoderConfig(
        width=1152, depth=13, mlp_dim=4304, num_heads=16, vocab_size=256_000, memory_dim=1536
    )
    depths = [
        decoder_config(two_towers(size, patch_size=16, image_size=256)).depth for size in "BL"
    ]
    assert depths == [6, 12]
    single = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, depth=1))
    assert decoder_config(single).depth == 1
    assert decoder_config(TINY, depth=3, length=9).depth == 3


def test_fresh_parameters():
    made = jax.jit(lambda key: nnx.state(Decoder(CONFIG, rngs=nnx.Rngs(key))))(jax.random.key(0))
    made = flatten(nnx.to_pure_dict(made))
    assert {path: x.shape for path, x in made.items()} == {
        path: x.shape for path, x in params().items()
    }
    assert made["embed/table"].shape == (18, 20) and made["pos/table"].shape == (6, 20)
    assert made["blocks/cross/key/kernel"].shape == (2, 28, 2, 10)
    assert not any(path.endswith("bias") and "attn" in path + path for path in made)
    assert 0.9 < made["embed/table"].std() < 1.1
    assert not made["out/kernel"].any()
    blocks = made["blocks/attn/query/kernel"]
    assert not np.array_equal(blocks[0], blocks[1])


def test_captions_that_are_too_long_are_refused():
    ids = np.zeros((B, R, 7), np.int32)
    with pytest.raises(ValueError, match="captions have 7 tokens, the decoder has 6 positions"):
        run(params(), ids, *inputs()[1:], PARALLEL)
