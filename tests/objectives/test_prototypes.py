"""The loss over prototypes against float64 NumPy, on any mesh; its memory; the head."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from objectives.samples import by_hand, directions, gelu, project
from scipy.special import erf

from siglip2_jax.objectives.base import Buffer
from siglip2_jax.objectives.prototypes import ProjectionHead, distillation_loss
from siglip2_jax.sharding import BATCH, device_put_global, make_mesh, put_batch

N, V, Z, K = 8, 3, 5, 11
TEMPERATURES = {"student_temperature": 0.1, "teacher_temperature": 0.04}


def unit(x: np.ndarray, axis: int = -1) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=axis, keepdims=True)).astype(np.float32)


def inputs(seed: int = 0, n: int = N, v: int = V, z: int = Z, k: int = K) -> list[np.ndarray]:
    """Student, teacher, both kernels, center, and weights of which one row has none."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    weights = rng.uniform(0, 1, (n, v)).astype(np.float32)
    weights[1] = 0
    kernels = unit(draw(z, k), 0), unit(draw(z, k), 0)
    return [unit(draw(n, v, z)), unit(draw(n, z)), *kernels, 0.1 * draw(k), weights]


def on_device(arrays: list[np.ndarray]) -> list[jax.Array]:
    return [jnp.asarray(x) for x in arrays]


def differences(arrays: list[np.ndarray], which: int, step: float = 1e-5) -> np.ndarray:
    """The gradient of `by_hand`'s loss, by central differences in float64."""
    arrays = [x.astype(np.float64) for x in arrays]
    found = np.zeros_like(arrays[which])
    for index in np.ndindex(found.shape):
        for sign in (1, -1):
            moved = list(arrays)
            moved[which] = arrays[which].copy()
            moved[which][index] += sign * step
            found[index] += sign * by_hand(*moved)[0] / (2 * step)
    return found


def loss_and_gradients(arrays, chunk: int, impl: str = "auto"):
    """Values of `distillation_loss`, and the gradients by all that it reads."""

    def loss(*arrays):
        match = distillation_loss(*arrays, **TEMPERATURES, chunk=chunk, impl=impl)
        return match.loss, match

    return jax.value_and_grad(loss, argnums=tuple(range(6)), has_aux=True)(*arrays)


def on(shape: tuple[int, int] | None, arrays: list[np.ndarray], chunk: int, impl: str):
    """The same on a mesh of this shape."""
    if shape is None:
        return jax.jit(partial(loss_and_gradients, chunk=chunk, impl=impl))(arrays)
    mesh = make_mesh(shape[0], jax.devices()[: shape[0] * shape[1]])
    with jax.set_mesh(mesh):
        student, teacher, weights = put_batch((arrays[0], arrays[1], arrays[5]), mesh)
        whole = [device_put_global(x, NamedSharding(mesh, PartitionSpec())) for x in arrays[2:5]]
        placed = [student, teacher, *whole, weights]
        found = jax.jit(partial(loss_and_gradients, chunk=chunk, impl=impl))(placed)
        assert found[1][0].sharding.is_equivalent_to(student.sharding, 3)
        return found


@pytest.mark.parametrize(
    ("shape", "chunk", "impl"),
    [
        *((None, 1024, "xla"), ((1, 1), 6, "xla"), ((1, 4), 1, "xla"), ((1, 4), 9, "xla")),
        *(((2, 2), 3, "xla"), (None, 1, "pallas"), ((2, 2), 1, "pallas")),
    ],
    ids=str,
)
def test_value_and_gradients(shape, chunk, impl):
    """Chunks of 1, 2 and 3 rows, and all at once; 8 rows are not divided by 3."""
    arrays = inputs()
    (loss, match), gradients = on(shape, arrays, chunk, impl)
    expected = by_hand(*arrays)
    for found, want in zip((loss, match.entropy, match.targets), expected, strict=True):
        np.testing.assert_allclose(found, want, rtol=3e-6)
    assert loss == match.loss
    for which in (0, 2):
        want = WANTED[which]
        np.testing.assert_allclose(gradients[which], want, rtol=0, atol=3e-6 * abs(want).max())
    for which in (1, 3, 4, 5):
        assert not np.any(gradients[which]), which


WANTED = {which: differences(inputs(), which) for which in (0, 2)}


def test_the_monitors_have_no_gradient():
    def monitors(student, kernel):
        arrays = on_device(inputs())
        arrays[0], arrays[2] = student, kernel
        match = distillation_loss(*arrays, **TEMPERATURES, chunk=6)
        return match.entropy + match.targets.sum()

    start = on_device(inputs())
    gradients = jax.grad(monitors, argnums=(0, 1))(start[0], start[2])
    assert not any(np.any(x) for x in gradients)


@pytest.mark.parametrize("impl", ["xla", "pallas"])
def test_extreme_temperatures_stay_finite(impl):
    arrays = on_device(inputs())
    temperatures = {"student_temperature": 1e-3, "teacher_temperature": 1e-4}
    loss = partial(distillation_loss, **temperatures, chunk=6, impl=impl)
    match, gradient = jax.value_and_grad(lambda x: loss(x, *arrays[1:]).loss)(arrays[0])
    assert np.isfinite(match) and np.isfinite(gradient).all()


def test_bfloat16_products_are_near():
    arrays = inputs(n=64, v=2, z=32, k=256)
    wanted, arrays = by_hand(*arrays), on_device(arrays)
    arrays[2], arrays[3] = (x.astype(jnp.bfloat16) for x in arrays[2:4])
    match = distillation_loss(*arrays, **TEMPERATURES, chunk=32)
    assert {x.dtype for x in match} == {np.dtype("float32")}
    np.testing.assert_allclose(match.loss, wanted[0], rtol=5e-3)
    assert match.loss != np.float32(wanted[0])


def temporary_bytes(chunk: int) -> int:
    arrays = on_device(inputs(n=64, v=4, z=4, k=4096))
    program = jax.jit(partial(loss_and_gradients, chunk=chunk))
    return program.lower(arrays).compile().memory_analysis().temp_size_in_bytes


def test_all_logits_are_never_in_memory():
    logits = 64 * 4 * 4096 * 4
    assert temporary_bytes(16) < logits / 2
    assert temporary_bytes(256) > logits


def test_the_value_alone_computes_no_derivatives():
    arrays = inputs(n=64, v=4, z=64, k=512)

    def flops(program) -> float:
        return jax.jit(program).lower(arrays).compile().cost_analysis()["flops"]

    value = flops(lambda x: distillation_loss(*x, **TEMPERATURES, chunk=256))
    both = flops(partial(loss_and_gradients, chunk=256))
    product = 2 * 64 * 4 * 64 * 512
    assert value < 2 * product < 3 * product < both


@pytest.mark.tpu
@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2"])
def test_tpus_run_the_kernels(topology):
    """Two, where the factors of products are bfloat16; else none."""
    pytest.importorskip("libtpu", reason="needs the extra `tpu`")
    from siglip2_jax.planner.topology import compile_only, topology_mesh

    mesh = topology_mesh(topology)
    specs = (BATCH, BATCH, PartitionSpec(), PartitionSpec(), PartitionSpec(), BATCH)

    def kernels(dtype: str) -> int:
        dtypes = [np.float32, np.float32, dtype, dtype, np.float32, np.float32]
        arrays = [
            jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype), sharding=NamedSharding(mesh, spec))
            for x, dtype, spec in zip(inputs(n=1200, z=256, k=1000), dtypes, specs, strict=True)
        ]
        with jax.set_mesh(mesh):
            program = jax.jit(partial(loss_and_gradients, chunk=16)).lower(arrays)
        return compile_only(program).as_text().count('custom_call_target="tpu_custom_call"')

    assert kernels("bfloat16") == 2
    assert kernels("float32") == 0


def head(**sizes) -> ProjectionHead:
    sizes = {"hidden": 12, "bottleneck": 6, "prototypes": 10} | sizes
    return ProjectionHead(7, **sizes, rngs=nnx.Rngs(0))


def test_head():
    module, x = head(), np.random.default_rng(0).standard_normal((2, 3, 7)).astype(np.float32)
    for layer in (module.fc1, module.fc2, module.fc3):
        layer.bias[...] = np.float32(0.1) * np.arange(len(layer.bias[...]), dtype=np.float32)
        layer.kernel[...] *= 20  # or the hidden values are so small that GELU is a line
    hidden = np.float64(x) @ np.float64(module.fc1.kernel[...])
    assert abs(gelu(hidden) - hidden / 2 * (1 + erf(hidden / 2**0.5))).max() > 1e-4
    expected = project(module, x)
    found = module.project(jnp.asarray(x), jnp.float32)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
    coarse = module.project(jnp.asarray(x), jnp.bfloat16)
    assert coarse.dtype == jnp.float32
    np.testing.assert_allclose(np.linalg.norm(coarse, axis=-1), 1, rtol=1e-6)
    assert 1e-5 < abs(coarse - expected).max() < 0.05


def test_prototypes_are_directions():
    module = head()
    before = module.directions(jnp.float32)
    np.testing.assert_allclose(before, directions(module), rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(before, axis=0), 1, rtol=1e-6)
    module.prototypes.kernel[...] *= np.arange(1, 11, dtype=np.float32)
    np.testing.assert_allclose(module.directions(jnp.float32), before, rtol=0, atol=1e-6)
    assert module.directions(jnp.bfloat16).dtype == jnp.bfloat16


def test_only_the_center_is_a_buffer():
    state = nnx.state(head(), Buffer)
    assert set(nnx.to_pure_dict(state)) == {"center"}
    assert not np.any(state["center"][...])
