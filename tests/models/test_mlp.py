"""The MLP of blocks: on TPU its two products are two programs, which changes no number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from siglip2_jax.models import layers
from siglip2_jax.models.layers import Mlp
from siglip2_jax.sharding import AXES


def gradients(mlp, x):
    """Values and all gradients, with nothing kept for the backward pass but the input."""
    definition, params = nnx.split(mlp)

    @jax.checkpoint
    def run(params, x):
        return nnx.merge(definition, params)(x)

    y, back = jax.vjp(run, params, x)
    return y, back(jnp.cos(y))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_barrier_changes_no_number(monkeypatch, dtype):
    mlp = Mlp(24, 96, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 7, 24)), dtype)
    barriers, found = [], []
    for platform in ("cpu", "tpu"):
        monkeypatch.setattr(layers, "platform", lambda platform=platform: platform)
        traced = jax.make_jaxpr(lambda *arguments: gradients(*arguments))(mlp, x)
        barriers.append(str(traced).count("optimization_barrier"))
        found.append(jax.tree.leaves(gradients(mlp, x)))
    assert barriers[0] == 0 < barriers[1]
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.tpu
@pytest.mark.parametrize("platform", ["tpu", "any other"])
def test_on_tpu_no_program_holds_both_products(monkeypatch, platform):
    pytest.importorskip("libtpu", reason="needs the extra `tpu`")
    from siglip2_jax.planner.estimate import measure
    from siglip2_jax.planner.topology import topology_mesh

    monkeypatch.setattr(layers, "platform", lambda: platform)
    images, tokens, width = 128, 256, 1024  # L/16, on each of four chips
    mesh = topology_mesh("v5e:2x2")
    definition, params = nnx.split(
        nnx.eval_shape(lambda: Mlp(width, 4 * width, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    )

    def on(x, spec):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    x = on(jax.ShapeDtypeStruct((4 * images, tokens, width), jnp.bfloat16), PartitionSpec(AXES))
    with jax.set_mesh(mesh):
        params = jax.tree.map(lambda p: on(p, PartitionSpec()), params)
        lowered = jax.jit(lambda params, x: nnx.merge(definition, params)(x)).lower(params, x)
    analysis, _ = measure(lowered, mesh, "the MLP", "")
    product = 2 * images * tokens * 4 * width**2
    largest = max(operation.flops for operation in analysis.operations)
    assert round(largest / product, 2) == (1 if platform == "tpu" else 2)
