"""LayerNorm and its residual branch against float64, values and gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from siglip2_jax.models.compute import Compute, run_blocks
from siglip2_jax.models.config import Tower
from siglip2_jax.models.kernels.layer_norm import layer_norm, residual_layer_norm
from siglip2_jax.models.layers import Encoder
from siglip2_jax.sharding import AXES, make_mesh

KINDS = ("xla", "pallas")
KERNEL = "siglip2_jax.models.kernels.layer_norm"


def layer(width):
    found, rng = layer_norm(width, nnx.Rngs(0)), np.random.default_rng(1)
    found.scale[...] = rng.normal(1, 0.3, width).astype(np.float32)
    found.bias[...] = rng.normal(0, 0.3, width).astype(np.float32)
    return found


def operands(shape, dtype=jnp.float32):
    """The stream, far from mean 0 and variance 1, and gradients of both results."""
    rng = np.random.default_rng(0)
    x = rng.normal(rng.normal(0, 3, (*shape[:2], 1)), 2, shape)
    return [jnp.asarray(y, dtype) for y in (x, rng.normal(size=shape), rng.normal(size=shape))]


def run(kind, layer, x, around, through):
    graphdef, state = nnx.split(layer)

    def both(state, x):
        return residual_layer_norm(nnx.merge(graphdef, state), x, x.dtype, kind)

    (same, y), back = jax.vjp(both, state, x)
    d_params, d_x = back((around, through))
    d_params = nnx.to_pure_dict(d_params)
    return same, y, d_x, d_params["scale"], d_params["bias"]


def expected(layer, *inputs):
    x, around, through = (np.asarray(y.astype(jnp.float32), np.float64) for y in inputs)
    scale, bias = (np.asarray(y[...], np.float64) for y in (layer.scale, layer.bias))
    deviation = 1 / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    normal = (x - x.mean(-1, keepdims=True)) * deviation
    slope = through * scale
    d_x = slope - slope.mean(-1, keepdims=True) - normal * (slope * normal).mean(-1, keepdims=True)
    return (
        x,
        normal * scale + bias,
        d_x * deviation + around,
        (through * normal).sum((0, 1)),
        through.sum((0, 1)),
    )


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        *(("xla", shape) for shape in ((2, 64, 128), (5, 1, 24))),
        *(("pallas", shape) for shape in ((2, 64, 128), (3, 49, 72), (40, 16, 32), (1, 1030, 16))),
        *(("pallas", shape) for shape in ((2, 1296, 16), (5, 1, 24))),
    ],
)
def test_values_and_gradients_in_float32(kind, shape):
    inputs = operands(shape)
    found, wanted = run(kind, layer(shape[-1]), *inputs), expected(layer(shape[-1]), *inputs)
    np.testing.assert_array_equal(found[0], inputs[0])
    for x, y in zip(found[1:], wanted[1:], strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5 * max(1, np.abs(y).max()))


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_rounded_once(kind):
    inputs = operands((4, 48, 64), jnp.bfloat16)
    found, wanted = run(kind, layer(64), *inputs), expected(layer(64), *inputs)
    assert [x.dtype for x in found] == [jnp.bfloat16] * 3 + [jnp.float32] * 2
    for x, y in zip(found[1:3], wanted[1:3], strict=True):
        # XLA rounds the branch's gradient before it adds the other.
        bound = 2**-8 * np.maximum(np.abs(y), 1) * (1 if kind == "pallas" else 2)
        assert (np.abs(np.asarray(x.astype(jnp.float32)) - y) <= bound).all()
    for x, y in zip(found[3:], wanted[3:], strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.slow
def test_an_encoder_with_the_kernel_as_without(dtype):
    """Under scan and remat, and one step of bfloat16 apart at most."""
    tower = Tower(width=32, depth=2, mlp_dim=64, num_heads=2)
    x = operands((2, 20, 32))[0]

    def total(kind, x):
        compute = Compute(dtype=jnp.dtype(dtype).name, remat="full", norm=kind)
        model = Encoder(tower, compute=compute, rngs=nnx.Rngs(0))
        graphdef, state = nnx.split(model)
        run = lambda state, x: nnx.merge(graphdef, state)(x)  # noqa: E731
        y, back = jax.vjp(run, state, x)
        return y, *jax.tree.leaves(back(jnp.cos(y)))

    tolerance = 1e-5 if dtype == jnp.float32 else 3e-2
    for found, wanted in zip(total("pallas", x), total("xla", x), strict=True):
        scale = max(1, np.abs(wanted).max())
        np.testing.assert_allclose(found, wanted, atol=tolerance * scale)


def test_under_vmap():
    inputs, own = operands((2, 16, 32)), layer(32)
    views = jnp.stack([inputs[0], inputs[1]])

    def loss(kind, x):
        x, y = residual_layer_norm(own, x, x.dtype, kind)
        return jnp.sum(jnp.sin(x) * y)

    found, wanted = (
        jax.vmap(jax.grad(lambda x, kind=kind: loss(kind, x)))(views) for kind in ("pallas", "xla")
    )
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def test_on_a_mesh_as_on_one_device():
    inputs, own = operands((16, 16, 32)), layer(32)
    alone = run("pallas", own, *inputs)
    with jax.set_mesh(make_mesh(2)):
        split = [jax.reshard(x, PartitionSpec(AXES)) for x in inputs]
        spread = jax.jit(lambda *x: run("pallas", own, *x))(*split)
        assert spread[2].sharding.spec[0] == AXES
    for x, y in zip(alone, spread, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("platform", "dtype", "tokens", "kernel"),
    [
        ("tpu", jnp.bfloat16, 256, True),
        ("tpu", jnp.bfloat16, 16, True),
        ("tpu", jnp.bfloat16, 1, False),
        ("tpu", jnp.bfloat16, 4096, True),
        ("tpu", jnp.bfloat16, 1030, False),
        ("tpu", jnp.float32, 256, False),
        ("cpu", jnp.bfloat16, 256, False),
        ("gpu", jnp.bfloat16, 256, False),
    ],
)
def test_what_is_chosen(monkeypatch, platform, dtype, tokens, kernel):
    seen = []
    monkeypatch.setattr(f"{KERNEL}.platform", lambda: platform)
    monkeypatch.setattr(f"{KERNEL}._branch", lambda x, *_: seen.append(x.shape) or (x, x))
    residual_layer_norm(layer(8), jnp.ones((2, tokens, 8), dtype), dtype)
    assert bool(seen) == kernel


@pytest.mark.tpu
@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2"])
@pytest.mark.parametrize(("tokens", "width"), [(256, 768), (196, 1152), (64, 96), (4096, 1536)])
def test_blocks_compile_for_tpu_with_the_kernel(topology, tokens, width):
    pytest.importorskip("libtpu", reason="needs the extra `tpu`")
    from siglip2_jax.planner.topology import compile_only, topology_mesh

    mesh = topology_mesh(topology)
    split = jax.sharding.NamedSharding(mesh, PartitionSpec(AXES))
    x = jax.ShapeDtypeStruct((8, tokens, width), jnp.bfloat16, sharding=split)
    own = layer(width)

    def step(x, factor):
        x, y = residual_layer_norm(own, x, jnp.bfloat16)
        return x + y * y * factor.astype(x.dtype), None

    def loss(x):
        compute = Compute(scan=False, remat="full")
        return run_blocks(step, x, jnp.ones((2, width)), compute).astype(jnp.float32).sum()

    with jax.set_mesh(mesh):
        text = compile_only(jax.jit(jax.grad(loss)).lower(x)).as_text()
    # Two layers forward, the first of them again, and both backward.
    assert text.count('custom_call_target="tpu_custom_call"') == 5
