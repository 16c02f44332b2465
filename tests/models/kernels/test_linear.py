"""Dense layers against float64, values and gradients, alone and on a mesh."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from siglip2_jax.models.kernels.linear import dense, dense_each
from siglip2_jax.sharding import AXES, make_mesh


def layer(dtype=jnp.float32, use_bias=True):
    return nnx.LinearGeneral(
        6,
        (2, 5),
        use_bias=use_bias,
        dtype=dtype,
        bias_init=nnx.initializers.normal(),
        rngs=nnx.Rngs(0),
    )


def operands(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(8, 300, n)), dtype) for n in (6, 10)]


def run(linear, x, cotangent):
    graphdef, state = nnx.split(linear)

    def product(state, x):
        return dense(nnx.merge(graphdef, state), x)

    y, back = jax.vjp(product, state, x)
    gradients, dx = back(cotangent)
    return y, dx, *(leaf for _, leaf in sorted(nnx.to_pure_dict(gradients).items()))


def expected(linear, x, cotangent):
    x, g = np.asarray(x, np.float64), np.asarray(cotangent, np.float64)
    kernel = np.asarray(linear.kernel[...], np.float64).reshape(6, 10)
    y = x @ kernel + np.asarray(linear.bias[...], np.float64).reshape(-1)
    d_kernel = np.einsum("bni,bno->io", x, g).reshape(6, 2, 5)
    return y, g @ kernel.T, g.sum((0, 1)).reshape(2, 5), d_kernel


def test_values_and_gradients():
    linear, (x, cotangent) = layer(), operands()
    for found, want in zip(run(linear, x, cotangent), expected(linear, x, cotangent), strict=True):
        np.testing.assert_allclose(found, want, atol=1e-5 * max(1, np.abs(want).max()))


def test_on_a_mesh_as_alone():
    linear, (x, cotangent) = layer(), operands()
    with jax.set_mesh(make_mesh(2)):
        split = [jax.reshard(y, PartitionSpec(AXES)) for y in (x, cotangent)]
        found = jax.jit(lambda *y: run(linear, *y))(*split)
    for one, want in zip(found, expected(linear, x, cotangent), strict=True):
        np.testing.assert_allclose(one, want, atol=1e-5 * max(1, np.abs(want).max()))


def test_bfloat16_gives_float32_and_sums_in_float32():
    linear, (x, cotangent) = layer(jnp.bfloat16), operands(jnp.bfloat16)
    y, _, d_bias, _ = run(linear, x, cotangent.astype(jnp.float32))
    assert y.dtype == jnp.float32
    want = np.asarray(cotangent.astype(jnp.float32), np.float64).sum((0, 1)).reshape(2, 5)
    np.testing.assert_allclose(d_bias, want, rtol=2**-8)  # rounded once, at the end


def test_without_bias():
    x = operands()[0]
    linear = layer(use_bias=False)
    np.testing.assert_allclose(
        dense(linear, x), linear(x).reshape(8, 300, 10), rtol=1e-5, atol=1e-6
    )


def each(linears, x, cotangents, together):
    """Values and gradients of several layers of one input."""
    graphdef, state = nnx.split(linears)

    def products(state, x):
        merged = nnx.merge(graphdef, state)
        return dense_each(merged, x) if together else [dense(linear, x) for linear in merged]

    y, back = jax.vjp(products, state, x)
    return y, back(cotangents)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("mesh", [None, (1, 8), (2, 4)])
def test_layers_of_one_input_as_each_alone(use_bias, mesh):
    linears = nnx.List([layer(use_bias=use_bias) for _ in range(3)])
    x, cotangent = operands()
    cotangents = [cotangent, 2 * cotangent, -cotangent[:, ::-1]]
    wanted = each(linears, x, cotangents, False)
    if mesh is None:
        found = each(linears, x, cotangents, True)
    else:
        with jax.set_mesh(make_mesh(mesh[0])):
            x, *cotangents = (jax.reshard(y, PartitionSpec(AXES)) for y in (x, *cotangents))
            found = jax.jit(lambda *y: each(linears, *y, True))(x, cotangents)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * max(1, np.abs(other).max()))


def test_layers_of_one_input_have_one_product_backward():
    linears, (x, cotangent) = nnx.List([layer() for _ in range(3)]), operands()
    program = jax.make_jaxpr(lambda x, *y: each(linears, x, list(y), True)[1])
    products = str(program(x, cotangent, cotangent, cotangent)).count("dot_general[")
    # Forward three; backward by the input, by the kernels, for the biases, and one that is unused.
    assert products == 3 + 4


@pytest.mark.tpu
def test_on_tpu_gradients_of_biases_are_faster_than_sums():
    pytest.importorskip("libtpu", reason="needs the extra `tpu`")
    from siglip2_jax.planner.hlo.program import analyse
    from siglip2_jax.planner.topology import compile_only, topology_mesh
    from siglip2_jax.train.chips import CHIPS

    mesh = topology_mesh("v5e:2x2")
    chip = next(chip for chip in CHIPS if chip.name == "v5e")
    split = jax.sharding.NamedSharding(mesh, PartitionSpec(AXES))
    x = jax.ShapeDtypeStruct((512, 256, 6), jnp.bfloat16, sharding=split)
    cotangent = jax.ShapeDtypeStruct((512, 256, 768), jnp.bfloat16, sharding=split)
    linear = nnx.Linear(6, 768, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))

    def ours(x, cotangent):
        return run(linear, x, cotangent.astype(jnp.float32))[2]

    def plain(x, cotangent):
        return cotangent.astype(jnp.float32).sum((0, 1))

    def seconds(f):
        with jax.set_mesh(mesh):
            return analyse(compile_only(jax.jit(f).lower(x, cotangent)).as_text(), chip).seconds

    assert seconds(ours) < 0.5 * seconds(plain)
