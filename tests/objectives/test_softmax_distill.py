"""Softmax distillation against float64 NumPy, on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models.builders import TINY
from scipy.special import log_softmax, softmax

from siglip2_jax.curation.selection import Embedded
from siglip2_jax.models.compute import Compute
from siglip2_jax.models.siglip2 import abstract_model
from siglip2_jax.objectives.base import View
from siglip2_jax.objectives.softmax_distill import SoftmaxDistill, distillation_loss
from siglip2_jax.sharding import make_mesh, put_batch
from siglip2_jax.types import Batch, Features, Patches

MESHES = [None, (1, 1), (1, 4), (1, 8), (2, 2)]


def unit(seed: int, n: int, width: int) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((n, width))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def models(n: int = 16) -> tuple[Embedded, Embedded]:
    student = Embedded(unit(0, n, 12), unit(1, n, 12), jnp.float32(1.5), jnp.float32(-3))
    teacher = Embedded(unit(2, n, 20), unit(3, n, 20), jnp.float32(2.3), jnp.float32(-9))
    return student, teacher


def by_hand(student: Embedded, teacher: Embedded) -> tuple[float, float, tuple]:
    """The loss, the teacher's entropy, and derivatives by the student's image, text and t."""
    image, text, t, _ = (np.asarray(x, np.float64) for x in jax.tree.leaves(student))
    scaled = np.exp(t) * image @ text.T
    given = [np.asarray(x, np.float64) for x in jax.tree.leaves(teacher)]
    wanted = np.exp(given[2]) * given[0] @ given[1].T
    n, loss, least, d_logits = len(image), 0.0, 0.0, np.zeros_like(scaled)
    for axis in (0, 1):
        target = softmax(wanted, axis)
        loss -= (target * log_softmax(scaled, axis)).sum() / (2 * n)
        least -= (target * np.log(target)).sum() / (2 * n)
        d_logits += (softmax(scaled, axis) - target) / (2 * n)
    d_image, d_text = np.exp(t) * d_logits @ text, np.exp(t) * d_logits.T @ image
    return loss, least, (d_image, d_text, (d_logits * scaled).sum(), np.zeros(()))


def on(shape: tuple[int, int] | None, pair: tuple[Embedded, Embedded]):
    """Loss, entropy, and gradients by both models."""
    program = jax.jit(jax.value_and_grad(distillation_loss, argnums=(0, 1), has_aux=True))
    if shape is None:
        return program(*jax.tree.map(jnp.asarray, pair))
    mesh = make_mesh(shape[0], jax.devices()[: shape[0] * shape[1]])
    with jax.set_mesh(mesh):
        split = [
            Embedded(*put_batch((x.image, x.text), mesh), jnp.asarray(x.t), jnp.asarray(x.b))
            for x in pair
        ]
        return program(*split)


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_value_and_gradients(shape):
    pair = models()
    (loss, least), (gradients, none) = on(shape, pair)
    wanted, entropy, derivatives = by_hand(*pair)
    np.testing.assert_allclose([loss, least], [wanted, entropy], rtol=2e-6)
    for found, expected in zip(jax.tree.leaves(gradients), derivatives, strict=True):
        atol = 4e-6 * np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=max(atol, 1e-7))
    assert not any(np.any(x) for x in jax.tree.leaves(none))


def test_a_student_like_its_teacher():
    """The least value has no gradient, whatever the biases."""
    _, teacher = models()
    student = Embedded(teacher.image, teacher.text, teacher.t, jnp.float32(5))
    (loss, least), (gradients, _) = on(None, (student, teacher))
    np.testing.assert_allclose(loss, least, rtol=1e-6)
    assert all(np.abs(x).max() < 1e-6 for x in jax.tree.leaves(gradients))


def view(student: Embedded, batch: Batch | None) -> View:
    n = student.image.shape[0]
    graphdef, shapes = abstract_model(TINY)
    model = nnx.merge(graphdef, shapes | {"t": student.t, "b": student.b})
    grid = np.ones((n, 2), np.int32)
    features = Features(None, student.image, student.image, None, grid, student.text)
    return View(model, None, features, batch, jax.random.key(0), jnp.int32(0))


def inputs(n: int, **extra) -> Batch:
    image = Patches(
        np.zeros((n, 1, 3), np.float32), np.zeros((n, 1, 2), np.int32), np.ones((n, 1), bool)
    )
    return Batch(image, np.zeros((n, 4), np.int32), extra)


def test_objective():
    objective, (student, teacher) = SoftmaxDistill(weight=0.5), jax.tree.map(jnp.asarray, models())
    loss, report = objective.loss(None, view(student, inputs(16, reference=teacher)))
    wanted, entropy, _ = by_hand(*models())
    np.testing.assert_allclose(loss, wanted, rtol=2e-6)
    np.testing.assert_allclose(report["divergence"], wanted - entropy, rtol=1e-5)
    assert objective.across_examples
    assert objective.head(TINY, Compute(), rngs=nnx.Rngs(0)) is None
    width = TINY.text.embed_dim
    assert objective.flops(TINY, inputs(16)) == 3 * 2 * 16 * 16 * width


def test_what_it_cannot_do_without():
    student, _ = models()
    with pytest.raises(ValueError, match="set optim.accumulate to 1"):
        SoftmaxDistill().loss(None, view(student, None))
    with pytest.raises(ValueError, match=r"found \['captions'\]"):
        SoftmaxDistill().loss(None, view(student, inputs(16, captions=np.zeros((16, 4)))))
