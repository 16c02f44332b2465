"""The mesh: how parameters and batches are split, and what moves between devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from PIL import Image

from siglip2_jax.demo import TOKENIZER
from siglip2_jax.inference.embedder import Embedder
from siglip2_jax.models.config import two_towers
from siglip2_jax.models.siglip2 import abstract_model, flatten, unflatten
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.preprocess.tokenizer import Tokenizer
from siglip2_jax.sharding import (
    BATCH,
    device_put_global,
    gather,
    has_mesh,
    join_batch,
    lookup,
    make_mesh,
    param_shardings,
    param_spec,
    put_batch,
    replicate,
    split_batch,
)
from siglip2_jax.testing import TINY, random_params

P = PartitionSpec
MOVES = re.compile(r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter")
MESHES = [(1, 1), (1, 4), (2, 2)]


def mesh_of(shape: tuple[int, int]):
    return make_mesh(shape[0], jax.devices()[: shape[0] * shape[1]])


def test_mesh():
    mesh = make_mesh(2, jax.devices()[:6])
    assert dict(mesh.shape) == {"replica": 2, "fsdp": 3}
    assert mesh.axis_types == (AxisType.Explicit,) * 2
    assert make_mesh().size == jax.device_count()
    for replica in (0, 4):
        with pytest.raises(ValueError, match=f"6 devices cannot form {replica} replicas"):
            make_mesh(replica, jax.devices()[:6])


@pytest.mark.parametrize(
    "path, shape, spec",
    [
        ("t", (), P()),
        ("text/head/bias", (8,), P()),
        ("vision/encoder/blocks/ln1/scale", (4, 8), P()),
        ("vision/pool/probe", (1, 1, 8), P()),
        ("vision/embed/kernel", (48, 64), P("fsdp", None)),
        ("vision/embed/kernel", (16, 64), P(None, "fsdp")),  # four rows would not fill a tile
        ("vision/embed/kernel", (16, 24), P(None, "fsdp")),
        ("vision/embed/kernel", (48, 30), P("fsdp", None)),
        ("vision/embed/kernel", (9, 30), P()),
        ("vision/pos/table", (16, 16, 64), P(None, None, "fsdp")),
        ("text/pos/table", (64, 40), P("fsdp", None)),
        # Features, however many rows; and nothing where they cannot be split.
        ("text/embed/table", (256_000, 8), P(None, "fsdp")),
        ("text/embed/table", (256_000, 6), P()),
        # Never the layers.
        ("vision/encoder/blocks/mlp/fc1/kernel", (64, 768, 3072), P(None, "fsdp", None)),
        ("text/encoder/blocks/mlp/fc1/kernel", (64, 8, 32), P(None, None, "fsdp")),
        ("text/encoder/blocks/attn/query/kernel", (64, 30, 3, 7), P()),
        ("heads/masked/out/kernel", (16, 12), P("fsdp", None)),
        ("heads/bias", (16,), P()),
    ],
)
def test_rules(path, shape, spec):
    assert param_spec(path, shape, 4) == spec


def test_every_matrix_of_a_release_is_split():
    """Over 16 devices all of a B model but vectors, scalars and the probe."""
    config = two_towers("B", patch_size=16, image_size=256)
    for path, leaf in flatten(abstract_model(config)[1]).items():
        small = path.rsplit("/")[-1] in ("bias", "scale", "probe", "t", "b")
        assert (param_spec(path, leaf.shape, 16) == P()) == small, path


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_placing(shape):
    mesh, rng = mesh_of(shape), np.random.default_rng(0)
    leaves = {"a/kernel": rng.random((8, 12), np.float32), "a/bias": rng.random(12, np.float32)}
    leaves["t"] = np.array(2, np.float32)
    shardings = param_shardings(mesh, leaves)
    for path, x in leaves.items():
        placed = device_put_global(x, shardings[path])
        np.testing.assert_array_equal(placed, x)
        for shard in placed.addressable_shards:
            np.testing.assert_array_equal(shard.data, x[shard.index])
    rows = rng.random((8, 3), np.float32)
    placed = put_batch({"x": rows}, mesh)["x"]
    np.testing.assert_array_equal(placed, rows)
    each = 8 // mesh.size
    parts = {d: rows[i * each : (i + 1) * each] for i, d in enumerate(mesh.devices.flat)}
    for shard in placed.addressable_shards:
        np.testing.assert_array_equal(shard.data, parts[shard.device])


@pytest.mark.parametrize("offset", [0, 4, 64])
def test_what_was_placed_may_be_written_again(offset):
    """Whatever the alignment, at which JAX decides whether it takes a copy on a CPU."""
    memory = np.zeros(2**16, np.uint8)
    start = -memory.ctypes.data % 128 + offset
    rows = memory[start : start + 8 * 4096].view(np.float32).reshape(8, 1024)
    rows[:] = 1
    placed = jax.block_until_ready(put_batch(rows, mesh_of((1, 2))))
    rows[:] = 2
    np.testing.assert_array_equal(placed, np.ones((8, 1024), np.float32))


def test_without_a_mesh():
    x = jnp.arange(12.0).reshape(6, 2)
    assert not has_mesh()
    assert replicate(x) is x
    np.testing.assert_array_equal(split_batch(x, 3)[1], x[1::3])
    np.testing.assert_array_equal(
        lookup(x, jnp.array([[5, 9]]), jnp.float32)[0], x[5:].repeat(2, 0)
    )


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_gather(shape):
    """Matrices travel in the compute dtype, vectors and scalars are not touched."""
    mesh = mesh_of(shape)
    kernel, bias = np.random.default_rng(0).random((2, 8, 12), np.float32)[:, :, :8]
    with jax.set_mesh(mesh):
        placed = {
            "kernel": device_put_global(kernel, NamedSharding(mesh, P("fsdp", None))),
            "bias": device_put_global(bias[0], NamedSharding(mesh, P())),
            "t": device_put_global(np.array(3, np.float32), NamedSharding(mesh, P())),
        }
        program = jax.jit(lambda x: gather(x, jnp.bfloat16))
        found = program(placed)
        assert jax.typeof(found["kernel"]).sharding.spec.partitions == (None, None)
        # What XLA for CPU makes of it says nothing: it gathers bfloat16 as float32.
        steps = jax.make_jaxpr(lambda x: gather(x, jnp.bfloat16))(placed).eqns
        steps = [step for step in steps if step.primitive.name == "reshard"]
    moved = [step.invars[0].aval for step in steps if step.invars[0].aval.ndim == 2]
    assert moved and {x.dtype for x in moved} == {jnp.dtype("bfloat16")}
    assert all(x.sharding.spec.partitions == ("fsdp", None) for x in moved)
    assert [found[name].dtype for name in ("kernel", "bias", "t")] == ["bfloat16", "float32"] + [
        "float32"
    ]
    np.testing.assert_array_equal(found["kernel"], kernel.astype(jnp.bfloat16))


@pytest.mark.tpu
def test_gradients_are_scattered_over_fsdp_and_summed_over_replica():
    """Nothing as large as a kernel is summed on every chip, if shards fill whole tiles."""
    pytest.importorskip("libtpu", reason="needs the extra `tpu`")
    from siglip2_jax.planner.hlo.program import analyse
    from siglip2_jax.planner.topology import compile_only, topology_mesh
    from siglip2_jax.train.chips import CHIPS

    mesh = topology_mesh("v5e:4x4", replica=4)
    kernel, x = (
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
        for shape, dtype, spec in (
            ((768, 1024), jnp.float32, P(None, "fsdp")),
            ((64, 256, 768), jnp.bfloat16, BATCH),
        )
    )

    def loss(kernel, x):
        y = jnp.matmul(x, gather(kernel, jnp.bfloat16), preferred_element_type=jnp.float32)
        return jnp.square(y.astype(jnp.bfloat16)).astype(jnp.float32).sum()

    with jax.set_mesh(mesh):
        text = compile_only(jax.jit(jax.grad(loss)).lower(kernel, x)).as_text()
    chip = next(chip for chip in CHIPS if chip.name == "v5e")
    size = 768 * 1024 * 2
    assert analyse(text, chip).collectives == {
        "all-gather": size * 3 / 4,
        "reduce-scatter": size * 3 / 4,
        "all-reduce": size / 4 * 2 * 3 / 4,
    }


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_lookup(shape):
    """Plain indexing, in value and gradient; no device ever has more rows' features than its own
    share of the table."""
    rng, mesh = np.random.default_rng(0), mesh_of(shape)
    table, ids = rng.random((50, 16), np.float32), rng.integers(0, 50, (8, 5)).astype(np.int32)
    ids[0, 0] = 70  # beyond the table: the last
    weights = rng.random((8, 5, 16), np.float32)

    def weighed(table, ids, weights):
        rows = lookup(table, ids, jnp.float32)
        return jnp.sum(rows * weights), rows

    with jax.set_mesh(mesh):
        placed = device_put_global(
            table, param_shardings(mesh, {"text/embed/table": table})["text/embed/table"]
        )
        inputs = placed, *put_batch((ids, weights), mesh)
        compiled = jax.jit(jax.value_and_grad(weighed, has_aux=True)).lower(*inputs).compile()
        (_, rows), grad = compiled(*inputs)
        assert jax.typeof(rows).sharding.spec == P(("replica", "fsdp"), None, None)
    ids = np.minimum(ids, 49)
    np.testing.assert_array_equal(rows, table[ids])
    expected = np.zeros((50, 16))
    np.add.at(expected, ids, weights)
    np.testing.assert_allclose(grad, expected, rtol=1e-6)
    assert grad.sharding == placed.sharding
    assert "f32[50,16]" not in compiled.as_text() or mesh.shape["fsdp"] == 1


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_parts_of_a_batch(shape):
    """Every device splits its own rows: together the parts are the batch, and nothing moves."""
    mesh = mesh_of(shape)
    with jax.set_mesh(mesh):
        x = put_batch(np.arange(16 * 3.0).reshape(16, 3), mesh)
        split = jax.jit(lambda x: split_batch(x, 2))
        both = jax.jit(lambda x: join_batch(split_batch(x, 2)))
        parts = split(x)
        assert parts.shape == (2, 8, 3)
        assert jax.typeof(parts).sharding.spec == P(None, ("replica", "fsdp"), None)
        assert sorted(np.ravel(parts[..., 0]).tolist()) == np.arange(0, 48, 3).tolist()
        np.testing.assert_array_equal(both(x), x)
        for program in (split, both):
            assert not MOVES.search(program.lower(x).compile().as_text())
        assert both(x).sharding.is_equivalent_to(NamedSharding(mesh, BATCH), 2)


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_pairs_of_replicated_rows(shape):
    """Element-wise work on all pairs, and its gradient, are those of one device."""
    mesh = mesh_of(shape)
    x = np.random.default_rng(0).standard_normal(8).astype(np.float32)

    def loss(x):
        everywhere = replicate(x)
        return (jnp.abs(everywhere[:, None] - everywhere) ** 3).mean()

    expected = jax.value_and_grad(loss)(jnp.asarray(x))
    with jax.set_mesh(mesh):
        found = jax.jit(jax.value_and_grad(loss))(put_batch(x, mesh))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 4), (2, 2)], ids=str)
def test_embedder(shape):
    """A model that is split over devices embeds as a whole one does, any number at a time."""
    mesh, params = mesh_of(shape), random_params(TINY)
    flat = flatten(params)
    shardings = param_shardings(mesh, flat)
    split = unflatten({path: device_put_global(x, shardings[path]) for path, x in flat.items()})
    parts = ImagePreprocessor(patch_size=4, image_size=None), Tokenizer.load(TOKENIZER)
    one, many = Embedder(TINY, params, *parts), Embedder(TINY, split, *parts, mesh=mesh)
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(rng.integers(0, 256, (9 + i, 21, 3), np.uint8)) for i in range(7)]
    texts = [f"photo number {i}" for i in range(7)]
    images = [model.embed_images(photos, max_num_patches=16) for model in (one, many)]
    words = [model.embed_texts(texts, batch_size=3) for model in (one, many)]
    for expected, found in (images, words):
        assert found.shape == (7, 24)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    features = [model.image_features(photos[:5], max_num_patches=16) for model in (one, many)]
    np.testing.assert_array_equal(features[1].grid, features[0].grid)
    valid = features[0].valid
    np.testing.assert_allclose(features[1].tokens[valid], features[0].tokens[valid], atol=2e-5)
    assert (many.temperature, many.bias) == (one.temperature, one.bias)
