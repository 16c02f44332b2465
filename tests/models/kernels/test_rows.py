"""Rows of tokens: a tower gives what it gives in the rows that sequences are."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec
from models.kernels.test_attention import text_on_tpu

from siglip2_jax.models import layers
from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import Tower
from siglip2_jax.models.kernels import attention
from siglip2_jax.models.kernels import rows as rows_module
from siglip2_jax.models.kernels.rows import arrange, in_whole_rows
from siglip2_jax.models.kernels.short_attention import short_attention
from siglip2_jax.models.layers import Encoder
from siglip2_jax.sharding import AXES, make_mesh


def test_rows_of_short_sequences(monkeypatch):
    def rows(images, tokens, impl="auto", dtype=jnp.bfloat16, valid=None):
        found = arrange(jnp.ones((images, tokens, 2), dtype), valid, impl)
        return found and (found.sequences, found.padding)

    assert rows(1024, 36) is None  # on a CPU
    assert rows(1024, 36, "pallas", jnp.float32) == (4, 0)  # for tests
    monkeypatch.setattr(rows_module, "platform", lambda: "tpu")
    assert rows(1024, 36) == (4, 0)  # nine tiles of 16
    assert rows(6, 36) == (3, 4)  # four do not divide the images
    assert rows(7, 36) == (1, 12)
    assert rows(1024, 49) == (2, 14) and rows(1024, 9) == (16, 0)
    assert rows(1024, 64) is rows(1024, 256) is None
    assert rows(128, 196) is rows(128, 729) is None  # as fast as they are
    assert rows(1024, 36, "xla") is rows(1024, 36, dtype=jnp.float32) is None
    assert rows(8, 36, valid=jnp.ones((8, 36), bool)) == (4, 0)
    assert rows(8, 36, valid=jnp.ones((8, 36, 36), bool)) is None
    with jax.set_mesh(make_mesh(2)):  # a device's images
        assert jax.device_count() == 8
        assert (rows(16, 36), rows(32, 36)) == ((2, 8), (4, 0))


WIDE = Tower(width=128, depth=2, mlp_dim=64, num_heads=2)


def encoder(kind, **options):
    return Encoder(WIDE, compute=Compute(attention=kind, **options), rngs=nnx.Rngs(0))


def gradients(made, inputs, devices):
    """Loss, tokens, and gradients by parameters and tokens, of an encoder."""
    graphdef, params = nnx.split(made)

    def loss(params, x, valid, cotangent):
        out = nnx.merge(graphdef, params)(x, valid)
        return jnp.sum(jnp.where(valid[..., None], out * cotangent, 0)), out

    step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    if devices == 1:
        return step(params, *inputs)
    with jax.set_mesh(make_mesh(1, jax.devices()[:devices])):
        return step(params, *[jax.reshard(x, PartitionSpec(AXES)) for x in inputs])


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "tokens", "row"), [(1, 36, 144), (2, 36, 144), (1, 21, 48)])
def test_a_tower_lays_short_sequences_side_by_side(monkeypatch, devices, tokens, row):
    """Values and gradients are those of one sequence a row, and the rows are what has run."""
    lengths = []
    monkeypatch.setattr(
        attention,
        "short_attention",
        lambda query, *rest: lengths.append(query.shape[1]) or short_attention(query, *rest),
    )
    rng = np.random.default_rng(0)
    x, cotangent = (jnp.asarray(rng.normal(size=(8, tokens, 128)), jnp.float32) for _ in range(2))
    valid = jnp.asarray(np.arange(tokens) < np.array([36, 36, 20, 1, 36, 15, 36, 9])[:, None])

    inputs = x, valid, cotangent
    (_, out), found = gradients(encoder("pallas", remat="full"), inputs, devices)
    assert set(lengths) == {row}
    (_, plain_out), plain_found = gradients(encoder("xla", remat="full"), inputs, devices)
    keep = np.asarray(valid)[..., None]
    np.testing.assert_allclose(np.where(keep, out, 0), np.where(keep, plain_out, 0), atol=1e-5)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(plain_found), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * max(1, np.abs(y).max()))


def kernels_on_tpu(*shape):
    """Lines of the kernels that a tower calls: attention and two norms, in a loop."""
    text = text_on_tpu(lambda x: encoder("auto", dtype="bfloat16")(x), (shape, jnp.bfloat16))
    kernels = [x for x in text.splitlines() if 'custom_call_target="tpu_custom_call"' in x]
    assert len(kernels) == 3
    return kernels


@pytest.mark.tpu
def test_on_tpu_a_tower_lays_short_sequences_side_by_side():
    kernels = kernels_on_tpu(16, 36, 128)
    assert all("[1,144,128]" in kernel for kernel in kernels)


def test_rows_that_fill_groups_of_tokens(monkeypatch):
    def rows(*shape):
        return in_whole_rows(jnp.zeros(shape)).shape

    assert rows(8, 64, 1) == (8, 64, 1)  # on a CPU
    monkeypatch.setattr(rows_module, "platform", lambda: "tpu")
    assert rows(8, 64, 1) == (2, 256, 1)
    assert rows(6, 64, 1) == (3, 128, 1)
    assert rows(16, 784, 1) == (49, 256, 1)
    assert rows(3, 64, 1) == (3, 64, 1)  # does not fill them
    assert rows(8, 256, 1) == (8, 256, 1) and rows(8, 384, 1) == (8, 384, 1)
    assert rows(512, 1) == (512, 1)
    with jax.set_mesh(make_mesh(2)):  # a device's tokens
        assert jax.device_count() == 8
        x = jax.reshard(jnp.zeros((16, 64, 1)), PartitionSpec(AXES))
        assert in_whole_rows(x).shape == (8, 128, 1)
        x = jax.reshard(jnp.zeros((8, 64, 1)), PartitionSpec(AXES))
        assert in_whole_rows(x) is x


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "images", "tokens", "devices", "row"),
    [
        (128, 8, 48, 1, 128),
        (128, 16, 48, 2, 128),
        (128, 4, 320, 1, 256),  # gradients in one array
        (256, 4, 288, 1, 128),  # gradients in three
    ],
)
@pytest.mark.parametrize("scan", [True, False])
def test_a_tower_runs_in_whole_rows(monkeypatch, width, images, tokens, devices, row, scan):
    """Values and gradients are those of the rows that sequences are, but the rows are others."""
    tower = Tower(width=width, depth=2, mlp_dim=64, num_heads=width // 64)
    rng = np.random.default_rng(0)
    shape = (images, tokens, width)
    x, cotangent = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))
    valid = jnp.asarray(np.arange(tokens) < rng.integers(1, tokens, (images, 1)))
    lengths = []
    dense = layers.dense
    monkeypatch.setattr(layers, "dense", lambda x, y: lengths.append(y.shape[1]) or dense(x, y))

    def run(platform):
        monkeypatch.setattr(rows_module, "platform", lambda: platform)
        compute = Compute(attention="pallas", scan=scan, remat="full")
        made = Encoder(tower, compute=compute, rngs=nnx.Rngs(0))
        return gradients(made, (x, valid, cotangent), devices)

    (_, out), found = run("tpu")
    assert set(lengths) == {row}
    lengths.clear()
    (_, plain_out), plain_found = run("cpu")
    assert set(lengths) == {tokens}
    np.testing.assert_allclose(out, plain_out, atol=1e-5)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(plain_found), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * max(1, np.abs(y).max()))


def test_an_mlp_runs_in_whole_rows(monkeypatch):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 48, 32)), jnp.float32)
    mlp = layers.Mlp(32, 64, dtype=jnp.float32, rngs=nnx.Rngs(0))
    plain = mlp(x)
    lengths = []
    dense = layers.dense
    monkeypatch.setattr(layers, "dense", lambda x, y: lengths.append(y.shape[1]) or dense(x, y))
    monkeypatch.setattr(rows_module, "platform", lambda: "tpu")
    np.testing.assert_allclose(mlp(x), plain, atol=1e-6)
    assert lengths == [128, 128]


@pytest.mark.tpu
def test_on_tpu_a_tower_runs_in_whole_rows():
    kernels = kernels_on_tpu(32, 64, 128)
    assert sum("[2,256,128]" in kernel for kernel in kernels) == 2
    assert sum("[8,64,128]" in kernel for kernel in kernels) == 1
