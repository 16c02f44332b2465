"""Attention's programs against a float64 softmax, values and gradients."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from siglip2_jax.models.compute import Compute, run_blocks
from siglip2_jax.models.kernels import attention
from siglip2_jax.models.kernels.attention import attend, choose
from siglip2_jax.models.kernels.long_attention import long_attention
from siglip2_jax.models.kernels.products import LANES
from siglip2_jax.models.kernels.score_blocks import Shape
from siglip2_jax.models.kernels.short_attention import short_attention
from siglip2_jax.models.layers import Attention
from siglip2_jax.sharding import AXES, make_mesh, put_batch

KINDS = ("xla", "pallas", "splash")


def expected(query, key, value, cotangent, valid):
    """Values and gradients in float64; nothing valid gives zeros."""
    query, key, value, cotangent = (
        np.asarray(x.astype(jnp.float32), np.float64).transpose(0, 2, 1, 3)
        for x in (query, key, value, cotangent)
    )
    scale = query.shape[-1] ** -0.5
    scores = query @ key.swapaxes(2, 3) * scale
    keep = np.ones(scores.shape, bool) if valid is None else np.asarray(valid)[:, None, None]
    scores = np.where(keep, scores, -np.inf)
    largest = scores.max(-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(largest), largest, 0))
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    d_weights = cotangent @ value.swapaxes(2, 3)
    d_scores = weights * (d_weights - (weights * d_weights).sum(-1, keepdims=True)) * scale
    found = (
        weights @ value,
        d_scores @ key,
        d_scores.swapaxes(2, 3) @ query,
        weights.swapaxes(2, 3) @ cotangent,
    )
    return [x.transpose(0, 2, 1, 3) for x in found]


def operands(shape, keys=None, dtype=jnp.float32, seed=0):
    batch, queries, heads, size = shape
    rng = np.random.default_rng(seed)
    lengths = (queries, keys or queries, keys or queries, queries)
    return [jnp.asarray(rng.normal(size=(batch, n, heads, size)), dtype) for n in lengths]


def run(kind, query, key, value, cotangent, valid):
    out, back = jax.vjp(lambda *x: attend(*x, valid, kind), query, key, value)
    return [out, *back(cotangent)]


def check(kind, inputs, valid, tolerance):
    found = run(kind, *inputs, valid)
    for x, y in zip(found, expected(*inputs, valid), strict=True):
        assert x.dtype == inputs[0].dtype
        scale = max(1.0, np.abs(y).max())
        np.testing.assert_allclose(np.asarray(x.astype(jnp.float32)), y, atol=tolerance * scale)


@pytest.mark.parametrize(
    ("kind", "shape", "keys"),
    [
        *((kind, (2, 16, 2, 64), None) for kind in KINDS),
        *((kind, (3, 17, 3, 16), 18) for kind in KINDS),
        ("pallas", (2, 49, 4, 64), None),
        ("pallas", (1, 300, 2, 64), None),  # two blocks of queries, the second of both heads
        pytest.param("pallas", (1, 330, 2, 64), None, marks=pytest.mark.slow),  # of one head each
        ("pallas", (2, 40, 3, 64), 24),  # a head without a neighbour
        ("pallas", (2, 20, 16, 72), None),  # heads that straddle groups of lanes
        ("pallas", (1, 24, 4, 96), 40),
        ("pallas", (1, 16, 1, 128), 70),
        ("pallas", (1, 16, 1, 192), None),  # wider than a group
        ("splash", (1, 24, 4, 96), 40),
    ],
)
def test_values_and_gradients_in_float32(kind, shape, keys):
    check(kind, operands(shape, keys), None, 2e-6)


@pytest.mark.parametrize(
    ("queries", "heads", "size", "length", "lanes"),
    [
        (64, 12, 64, None, 6 * 128),  # texts: two heads fill what one would leave half empty
        (65, 12, 64, None, 12 * 128),
        (196, 2, 64, None, 2 * 256),
        (256, 2, 64, None, 2 * 256),
        (576, 2, 64, None, 2 * 512 + 128),
        (784, 2, 64, None, 2 * 768 + 128),
        (16, 8, 16, None, 128),
        (40, 3, 64, None, 2 * 128),  # the third has no neighbour
        (64, 16, 72, None, 16 * 128),  # heads that straddle groups of lanes
        (48, 2, 64, 16, 2 * 128),  # sequences side by side have masks of their own
    ],
)
def test_queries_of_heads_that_share_lanes_stand_side_by_side(queries, heads, size, length, lanes):
    query = jnp.zeros((2, queries, heads, size))
    shape = Shape(query, query, length)
    blocks = list(shape.blocks(2))
    covered = [
        (block.image, head, row)
        for block in blocks
        for head in block.heads
        for row in range(queries)[block.rows]
    ]
    assert sorted(covered) == list(itertools.product(range(2), range(shape.heads), range(queries)))
    columns = [[x for _, x in block.columns()][-1].stop for block in blocks]
    assert sum(math.ceil(x / LANES) * LANES for x in columns) == 2 * lanes / shape.groups


@pytest.mark.parametrize(
    ("shape", "keys", "lengths", "tolerance"),
    [
        ((1, 1900, 1, 64), None, None, 2e-6),  # three blocks, the last ragged
        # Of a single key's score the gradient is 0 as the difference of products with it and with
        # the output, which are summed in different orders.
        ((3, 1200, 1, 72), None, [1100, 1, 0], 3e-5),
        ((1, 1030, 1, 96), 1536, [1025], 2e-6),
        ((1, 1536, 1, 64), None, None, 2e-6),  # nothing to pad: no segments
    ],
)
def test_long_sequences(shape, keys, lengths, tolerance):
    inputs = operands(shape, keys)
    count = inputs[1].shape[1]
    valid = None if lengths is None else jnp.arange(count) < jnp.asarray(lengths)[:, None]
    check("splash", inputs, valid, tolerance)


def test_long_sequences_in_bfloat16():
    inputs = operands((1, 1200, 1, 72), dtype=jnp.bfloat16)
    check("splash", inputs, jnp.arange(1200)[None] < 1111, 2**-7)


def like_cudnn(query, key, value, *, key_value_seq_lengths, implementation):
    """Stands in for cuDNN, off GPU: reads lengths alone, and gives NaN where there is no key."""
    assert implementation == "cudnn"
    found = DOT_PRODUCT_ATTENTION(
        query, key, value, key_value_seq_lengths=key_value_seq_lengths, implementation="xla"
    )
    return jnp.where(key_value_seq_lengths[:, None, None, None] > 0, found, jnp.nan)


DOT_PRODUCT_ATTENTION = jax.nn.dot_product_attention


def on_gpu(monkeypatch, generation=8):
    monkeypatch.setattr(attention, "platform", lambda: "gpu")
    monkeypatch.setattr(attention, "_generation", lambda: generation)


@pytest.mark.parametrize("lengths", [None, [40, 1, 17, 0]])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_what_is_asked_of_cudnn(monkeypatch, lengths, dtype):
    on_gpu(monkeypatch)
    monkeypatch.setattr(jax.nn, "dot_product_attention", like_cudnn)
    valid = None if lengths is None else jnp.arange(40) < jnp.asarray(lengths)[:, None]
    for kind in ("cudnn", "auto"):
        check(kind, operands((4, 24, 2, 72), 40, dtype), valid, 2**-6)


@pytest.mark.parametrize("mesh", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_lowers_to_cudnn(monkeypatch, mesh, padded):
    # Everything up to the library can be made without a GPU, but for asking for its version.
    from jax._src.cudnn import fused_attention_stablehlo

    on_gpu(monkeypatch)
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    split = jax.NamedSharding(make_mesh(), PartitionSpec(AXES)) if mesh else None
    shapes = [jax.ShapeDtypeStruct((8, 196, 2, 72), jnp.bfloat16, sharding=split)] * 4
    if padded:
        shapes.append(jax.ShapeDtypeStruct((8, 196), jnp.bool_, sharding=split))

    def both(*x):
        return run("auto", *x[:4], x[4] if padded else None)

    with jax.set_mesh(make_mesh()) if mesh else contextlib.nullcontext():
        text = jax.jit(both).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
    calls = re.findall(r"custom_call @(__cudnn\S*?)\(", text)
    assert calls == ["__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"]
    assert "PADDING" in text


def test_what_cudnn_cannot_do(monkeypatch):
    def refused(reason, size=64, dtype=jnp.bfloat16, valid=None):
        query, key, value, _ = operands((1, 16, 2, size), dtype=dtype)
        with pytest.raises(ValueError, match=reason):
            attend(query, key, value, valid, "cudnn")

    refused('"cudnn" needs a GPU, found the platform "cpu"; use "auto" or "xla"')
    on_gpu(monkeypatch)
    refused("takes bfloat16 or float16, found float32", dtype=jnp.float32)
    refused("up to 128 that are multiples of 8, found 12", size=12)
    refused("up to 128 that are multiples of 8, found 136", size=136)
    refused("one mask for all queries", valid=jnp.ones((1, 16, 16), bool))
    on_gpu(monkeypatch, 7)
    refused("an NVIDIA GPU of compute capability 8.0")


@pytest.mark.parametrize(
    ("capability", "generation"), [("7.5", 7), ("12.0", 12), ("gfx942", 0), (None, 0)]
)
def test_generation_of_a_gpu(monkeypatch, capability, generation):
    device = SimpleNamespace(compute_capability=capability) if capability else SimpleNamespace()
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert attention._generation() == generation


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_operands(kind):
    check(kind, operands((2, 64, 2, 64), dtype=jnp.bfloat16), None, 2**-7)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_with_all_one_some_and_no_valid_keys(kind):
    lengths = np.array([40, 1, 17, 0])
    valid = jnp.asarray(np.arange(40) < lengths[:, None])
    check(kind, operands((4, 24, 2, 64), 40), valid, 2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_need_not_be_prefixes(kind):
    valid = jnp.asarray(np.random.default_rng(1).uniform(size=(2, 30)) < 0.5)
    check(kind, operands((2, 30, 2, 64)), valid, 2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_garbage_in_padding_changes_nothing(kind):
    query, key, value, cotangent = operands((2, 32, 2, 64))
    valid = jnp.asarray(np.arange(32) < np.array([[20], [1]]))
    clean = run(kind, query, key, value, cotangent, valid)
    pad = ~valid[..., None, None]
    loud = run(kind, query, jnp.where(pad, 1e4, key), jnp.where(pad, -1e4, value), cotangent, valid)
    for x, y in zip(clean[:2], loud[:2], strict=True):
        np.testing.assert_array_equal(x, y)
    for x in loud[2:]:
        assert not np.any(np.where(pad, x, 0))


@pytest.mark.parametrize("kind", KINDS)
def test_large_scores_do_not_overflow(kind):
    query, key, value, cotangent = operands((1, 16, 1, 64))
    check(kind, (query * 10, key * 10, value, cotangent), None, 2e-4)


@pytest.mark.slow
def test_under_scan_remat_and_vmap():
    inputs = operands((2, 16, 2, 64))[:3]
    valid = jnp.asarray(np.arange(16) < np.array([[16], [5]]))

    def total(kind):
        def layer(x, scale):
            return x + attend(x * scale, x, x, valid, kind), None

        def loss(x):
            compute = Compute(remat=("qkv",))
            return jnp.sum(jnp.sin(run_blocks(layer, x, jnp.asarray([0.5, 1.0]), compute)))

        views = jnp.stack([inputs[0], inputs[1]])
        return jax.jit(jax.vmap(jax.value_and_grad(loss)))(views)

    for kind in ("pallas", "splash"):
        for x, y in zip(jax.tree.leaves(total(kind)), jax.tree.leaves(total("xla")), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=5e-5)  # |x| is up to 80


@pytest.mark.parametrize("kind", ["pallas", "splash"])
@pytest.mark.slow
def test_on_a_mesh_as_on_one_device(kind):
    inputs = operands((8, 16, 2, 64))
    valid = jnp.asarray(np.arange(16) < np.arange(1, 9)[:, None])
    alone = jax.jit(partial(run, kind))(*inputs, valid)
    with jax.set_mesh(make_mesh(2)):
        split = [jax.reshard(x, PartitionSpec(AXES)) for x in (*inputs, valid)]
        spread = jax.jit(partial(run, kind))(*split)
        assert spread[1].sharding.spec[0] == AXES
    for x, y in zip(alone, spread, strict=True):  # XLA rounds by the size of a device's batch
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["xla", "pallas"])
@pytest.mark.parametrize("padded", [False, True])
def test_sequences_side_by_side(kind, padded):
    """Rows of three sequences give what each gives alone; one of them has no valid key."""
    inputs = operands((6, 18, 2, 64))
    lengths = np.array([18, 1, 0, 7, 18, 17])
    valid = jnp.asarray(np.arange(18) < lengths[:, None]) if padded else None
    rows = [x.reshape(2, 54, 2, 64) for x in inputs]
    mask = None if valid is None else valid.reshape(2, 54)
    out, back = jax.vjp(lambda *x: attend(*x, mask, kind, length=18), *rows[:3])
    for x, y in zip((out, *back(rows[3])), expected(*inputs, valid), strict=True):
        np.testing.assert_allclose(x, y.reshape(x.shape), atol=2e-6 * max(1, np.abs(y).max()))


def test_what_is_chosen(monkeypatch):
    def on(platform, queries, keys, dtype=jnp.bfloat16, valid=None, size=64, generation=9):
        monkeypatch.setattr(attention, "platform", lambda: platform)
        monkeypatch.setattr(attention, "_generation", lambda: generation)
        query, key = (jnp.ones((2, n, 2, size), dtype) for n in (queries, keys))
        return choose(query, key, valid)

    assert on("tpu", 256, 256) == "pallas"
    assert on("tpu", 64, 1024, valid=jnp.ones((2, 1024), bool)) == "pallas"
    assert on("cpu", 256, 256) == "xla"
    assert on("tpu", 1025, 1025) == "splash"
    assert on("tpu", 2304, 2304, valid=jnp.ones((2, 2304), bool), size=72) == "splash"
    assert on("tpu", 64, 2304) == "xla"
    assert on("tpu", 2304, 2304, jnp.float32) == "xla"
    assert on("gpu", 256, 256) == "cudnn"
    assert on("gpu", 2304, 2304, jnp.float16, jnp.ones((2, 2304), bool), 72) == "cudnn"
    assert on("gpu", 256, 256, jnp.float32) == "xla"
    assert on("gpu", 256, 256, size=12) == "xla"
    assert on("gpu", 256, 256, size=192) == "xla"
    assert on("gpu", 64, 64, valid=jnp.ones((2, 64, 64), bool)) == "xla"
    assert on("gpu", 1, 256) == "xla"
    assert on("gpu", 256, 256, generation=7) == "xla"  # a T4
    assert on("tpu", 1, 256) == "xla"  # the head that pools
    assert on("tpu", 256, 256, jnp.float32) == "xla"
    assert on("tpu", 64, 64, valid=jnp.ones((2, 64, 64), bool)) == "xla"


def test_what_the_kernel_cannot_do():
    query, key, value, _ = operands((1, 16, 1, 64), 1040)
    with pytest.raises(ValueError, match=r"at most 1024 keys, found 1040.*xla"):
        attend(query, key, value, None, "pallas")
    with pytest.raises(ValueError, match="one mask for all queries"):
        attend(query, key, value, jnp.ones((1, 16, 1040), bool), "pallas")
    with pytest.raises(ValueError, match='"splash" has one mask for all queries'):
        attend(query, key, value, jnp.ones((1, 16, 1040), bool), "splash")


def kernels_on_tpu(f, *shapes, topology="v5e:2x2"):
    """Number of runs of the kernel in a program compiled for TPUs."""
    text = text_on_tpu(f, *shapes, topology=topology)
    return text.count('custom_call_target="tpu_custom_call"')


def text_on_tpu(f, *shapes, topology="v5e:2x2"):
    """A program compiled for TPUs."""
    pytest.importorskip("libtpu", reason="needs the extra `tpu`")
    from siglip2_jax.planner.topology import compile_only, topology_mesh

    mesh = topology_mesh(topology)
    split = jax.sharding.NamedSharding(mesh, PartitionSpec(AXES))
    shapes = [jax.ShapeDtypeStruct(x, dtype, sharding=split) for x, dtype in shapes]
    with jax.set_mesh(mesh):
        return compile_only(jax.jit(f).lower(*shapes)).as_text()


@pytest.mark.tpu
@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2"])
@pytest.mark.parametrize(
    ("heads", "size", "queries", "keys"),
    [
        (12, 64, 256, 256),
        (16, 72, 196, 196),
        (2, 96, 16, 400),
        (12, 64, 2304, 2304),
        (16, 72, 2304, 2304),
        (2, 96, 1100, 1300),
    ],
)
def test_compiles_for_tpu(topology, heads, size, queries, keys):
    shapes = [((8, n, heads, size), jnp.bfloat16) for n in (queries, keys, keys, queries)]
    found = kernels_on_tpu(
        lambda *x: run("auto", *x), *shapes, ((8, keys), jnp.bool_), topology=topology
    )
    assert found == 2


@pytest.mark.tpu
@pytest.mark.parametrize("tokens", [64, 1200])
def test_compiles_for_tpu_where_float32_is_exact(tokens):
    """Programs of inference ask for that; Mosaic refuses such products of bfloat16."""

    def precise(*operands):
        with jax.default_matmul_precision("highest"):
            return attend(*operands)

    assert kernels_on_tpu(precise, *[((4, tokens, 2, 64), jnp.bfloat16)] * 3) == 1


@pytest.mark.tpu
@pytest.mark.parametrize("tokens", [64, 1200])
@pytest.mark.parametrize(("names", "runs"), [(("attn_out",), 6), (("qkv",), 8)])
def test_saved_by_name_the_kernel_does_not_run_again(names, runs, tokens):
    # Of three layers the last needs no second run of its forward pass.
    compute = Compute(scan=False, remat=names)

    def loss(x, weights):
        def layer(x, weight):
            y = jnp.einsum("bnhc,hcd->bnd", attend(x, x, x), weight).reshape(
                x.shape, out_sharding=jax.typeof(x).sharding
            )
            return x + y.astype(x.dtype), None

        return run_blocks(layer, x, weights, compute).astype(jnp.float32).sum()

    def gradients(x):
        weights = jnp.ones((3, 2, 64, 128), jnp.bfloat16)
        return jax.grad(loss, (0, 1))(x, weights)

    assert kernels_on_tpu(gradients, ((8, tokens, 2, 64), jnp.bfloat16)) == runs


@pytest.mark.parametrize(
    ("kind", "program"), [("pallas", "short_attention"), ("splash", "long_attention")]
)
def test_a_layer_uses_what_it_is_told(monkeypatch, kind, program):
    seen = []
    for name in ("short_attention", "long_attention"):
        monkeypatch.setattr(attention, name, lambda x, *_, name=name, **__: seen.append(name) or x)
    x = jnp.ones((1, 16, 8))
    Attention(8, 2, impl=kind, dtype=jnp.float32, rngs=nnx.Rngs(0))(x, x)
    assert seen == [program]
    Attention(8, 2, dtype=jnp.float32, rngs=nnx.Rngs(0))(x, x)
    assert seen == [program]
    assert short_attention is not attention.short_attention
    assert long_attention is not attention.long_attention


def plain(query, key, value, valid):
    """A kernel from outside: `jax.nn`'s."""
    mask = None if valid is None else valid[:, None, None, :]
    return jax.nn.dot_product_attention(query, key, value, mask=mask)


@pytest.mark.parametrize("devices", [1, 4])
def test_a_function_is_a_kernel(devices):
    """It gets each device's images, and gives what the kernels of the package give."""
    batches = []

    def kernel(*operands):
        batches.append(len(operands[0]))
        return plain(*operands)

    module, reference = (
        Attention(24, 3, impl=kind, dtype=jnp.float32, rngs=nnx.Rngs(0)) for kind in (kernel, "xla")
    )
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 5, 24)), jnp.float32)
    valid = jnp.arange(5) < 1 + jnp.arange(8)[:, None] % 5
    expected = reference(x, x, valid)
    mesh = make_mesh(1, jax.devices()[:devices])
    with jax.set_mesh(mesh):
        split, mask = put_batch((x, valid), mesh)
        found = jax.jit(lambda *operands: module(*operands))(split, split, mask)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert set(batches) == {8 // devices}
