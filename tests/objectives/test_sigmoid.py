"""The sigmoid loss against float64 NumPy, on any mesh; what its two implementations hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh
from models.builders import TINY
from scipy.special import expit

from siglip2_jax.models.compute import Compute
from siglip2_jax.objectives.sigmoid import Sigmoid, ring_loss, sigmoid_loss
from siglip2_jax.sharding import make_mesh, put_batch

COMPUTE = {"dense": sigmoid_loss, "ring": ring_loss}
MESHES = [(1, 1), (1, 4), (1, 8), (2, 2)]


def unit(seed: int, n: int, width: int = 24) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((n, width))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def by_hand(image, text, t, b) -> tuple[float, tuple]:
    """The loss of the paper's pseudocode and its derivatives, in float64."""
    image, text = image.astype(np.float64), text.astype(np.float64)
    n = len(image)
    scaled = np.exp(np.float64(t)) * image @ text.T
    logits = scaled + b
    labels = 2 * np.eye(n) - 1
    loss = np.logaddexp(0, -labels * logits).sum() / n
    d_logits = -labels * expit(-labels * logits) / n
    d_image, d_text = np.exp(t) * d_logits @ text, np.exp(t) * d_logits.T @ image
    return loss, (d_image, d_text, (d_logits * scaled).sum(), d_logits.sum())


PROGRAMS = {
    name: jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3))) for name, loss in COMPUTE.items()
}


def on(mesh: Mesh, name: str, *inputs):
    """Value and gradients, and how the gradients are split."""
    image, text, t, b = inputs
    with jax.set_mesh(mesh):
        split = put_batch((image, text), mesh)
        loss, grads = PROGRAMS[name](*split, jnp.float32(t), jnp.float32(b))
        assert all(grad.sharding.is_equivalent_to(split[0].sharding, 2) for grad in grads[:2])
        return np.asarray(loss), [np.asarray(grad) for grad in grads]


def assert_near(found, expected, rtol: float, least: float = 0.0) -> None:
    """Relative to the largest magnitude of each array, or to `least` where all are smaller."""
    (loss, grads), (wanted, derivatives) = found, expected
    np.testing.assert_allclose(loss, wanted, rtol=rtol)
    for grad, derivative, name in zip(grads, derivatives, "image text t b".split(), strict=True):
        atol = rtol * max(np.abs(derivative).max(), least)
        np.testing.assert_allclose(grad, derivative, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("shape", MESHES, ids=str)
@pytest.mark.parametrize("name", COMPUTE)
def test_value_and_gradients(name, shape):
    mesh = make_mesh(shape[0], jax.devices()[: shape[0] * shape[1]])
    inputs = unit(0, 16), unit(1, 16), 2.3, -3.1
    assert_near(on(mesh, name, *inputs), by_hand(*inputs), 2e-6)


def test_pairs_are_not_the_first_that_match():
    """A text in another row is no pair, whatever its cosine."""
    image = unit(0, 8)
    mesh = make_mesh(1, jax.devices()[:4])
    for name in COMPUTE:
        inputs = image, np.roll(image, 1, 0), 2.0, -1.0
        assert_near(on(mesh, name, *inputs), by_hand(*inputs), 2e-6)


def test_without_a_mesh():
    inputs = unit(0, 6), unit(1, 6), 2.3, -9.5
    grad = jax.value_and_grad(sigmoid_loss, argnums=(0, 1, 2, 3))
    assert_near(jax.jit(grad)(*inputs[:2], *map(jnp.float32, inputs[2:])), by_hand(*inputs), 2e-6)


@pytest.mark.parametrize("sign", [1, -1], ids=["aligned", "opposed"])
@pytest.mark.parametrize("b", [-10.0, 10.0])
@pytest.mark.parametrize("name", COMPUTE)
def test_extreme_logits(name, b, sign):
    """Temperature 100 and cosines of exactly 1 and -1: logits from -110 to 110."""
    image = np.concatenate([np.eye(4, dtype=np.float32), -np.eye(4, dtype=np.float32)])
    inputs = image, sign * image, np.log(100.0), b
    found, expected = on(make_mesh(1, jax.devices()[:4]), name, *inputs), by_hand(*inputs)
    assert np.isfinite(found[0]) and all(np.isfinite(grad).all() for grad in found[1])
    assert_near(found, expected, 2e-6, least=0.1)  # sums in which ones cancel


def temporary_bytes(name: str, devices: int) -> int:
    """Temporary memory of the loss and its gradients, at 64 examples a device."""
    mesh = make_mesh(1, jax.devices()[:devices])
    with jax.set_mesh(mesh):
        split = put_batch((unit(0, 64 * devices), unit(1, 64 * devices)), mesh)
        program = jax.jit(jax.value_and_grad(COMPUTE[name], argnums=(0, 1, 2, 3)))
        compiled = program.lower(*split, jnp.float32(0), jnp.float32(0)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_of_the_ring_does_not_grow_with_devices():
    ring = [temporary_bytes("ring", devices) for devices in (2, 8)]
    dense = [temporary_bytes("dense", devices) for devices in (2, 8)]
    assert ring[1] <= 1.02 * ring[0], ring  # only the list of who sends to whom is longer
    assert dense[1] > 3 * dense[0], dense


def test_objective():
    objective = Sigmoid(implementation="ring")
    assert objective.across_examples
    assert objective.head(TINY, Compute(), rngs=nnx.Rngs(0)) is None
