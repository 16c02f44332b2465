"""A small model with its moving average, views of images, and the step's view of both."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from models.builders import patches
from scipy.special import log_softmax, softmax

from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import ModelConfig, TextConfig, VisionConfig
from siglip2_jax.models.siglip2 import SigLIP2, abstract_model
from siglip2_jax.objectives.base import Teacher, View
from siglip2_jax.objectives.distillation import Distillation
from siglip2_jax.testing import random_params
from siglip2_jax.types import Batch, Patches

TOWER = {"depth": 1, "mlp_dim": 16, "num_heads": 2}
SMALL = ModelConfig(
    vision=VisionConfig(**TOWER, width=12, patch_size=2, grid=3, image_size=None),
    text=TextConfig(**TOWER, width=8, vocab_size=17, embed_dim=12, length=4),
)
SIZES = {"prototypes": 16, "hidden": 8, "bottleneck": 4}
B, V = 8, 4


def batch(seed: int = 0, fill: float = 0.0) -> Batch:
    """Eight images with one global and four local views, padded with `fill`; all sizes differ."""
    grids = [(3, 2), (2, 3), (3, 3), (1, 1), (2, 2), (1, 4), (3, 1), (4, 2)]
    images = [patches(grids, 9, 2, seed=seed + i, fill=fill) for i in range(2)]
    small = [(1 + i % 2, 1 + i % 3) for i in range(B * V)]
    local = patches(small, 6, 2, seed=seed + 2, fill=fill)
    extra = {"global": stacked(images[1], 1), "local": stacked(local, V)}
    rng = np.random.default_rng(seed)
    text = rng.integers(0, 17, (B, 4)).astype(np.int32)
    return jax.tree.map(jnp.asarray, Batch(images[0], text, extra))


def stacked(images: Patches, views: int) -> Patches:
    return jax.tree.map(lambda x: x.reshape(B, views, *x.shape[1:]), images)


@functools.cache
def model(seed: int) -> SigLIP2:
    with jax.ensure_compile_time_eval():  # the first call may come from a function that is traced
        params = jax.tree.map(jnp.asarray, random_params(SMALL, seed))
    return nnx.merge(abstract_model(SMALL)[0], params)


def head(objective: Distillation, seed: int) -> nnx.Module:
    """The objective's head, every value random."""
    made, rng = objective.head(SMALL, Compute(), rngs=nnx.Rngs(0)), np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(0.5 * rng.standard_normal(x.shape, np.float32)), made)


@dataclasses.dataclass
class Scene:
    """An objective with what it looks at: student and teacher differ in every value."""

    objective: Distillation
    batch: Batch
    student: SigLIP2
    teacher: SigLIP2
    student_head: nnx.Module
    teacher_head: nnx.Module
    key: jax.Array


def scene(objective: Distillation, seed: int = 0, fill: float = 0.0) -> Scene:
    heads = head(objective, 1), head(objective, 2)
    return Scene(
        objective, batch(seed, fill), *(model(i) for i in (3, 4)), *heads, jax.random.key(5)
    )


@jax.jit
def _encode(student: SigLIP2, batch: Batch):
    return student.encode(batch.image, batch.text)


def view(scene: Scene, seen: dict | None = None) -> View:
    """View of a scene as the step would show it."""
    seen = {} if seen is None else seen
    teacher = Teacher(scene.teacher, scene.teacher_head, scene.batch, seen)
    features = _encode(scene.student, scene.batch)
    return View(scene.student, teacher, features, scene.batch, scene.key, jnp.int32(0))


MODULES = ("student", "teacher", "student_head", "teacher_head")


@functools.partial(jax.jit, static_argnums=0)
def _measure(objective: Distillation, batch: Batch, parts: dict, graphdefs: dict, key: jax.Array):
    """Loss, report and the new center; gradients by all parameters."""

    def loss(parts):
        modules = {name: nnx.merge(graphdefs[name], parts[name]) for name in MODULES}
        shown = Scene(objective, batch, **modules, key=key)
        value, report = objective.loss(shown.student_head, view(shown))
        projection = getattr(shown.student_head, "projection", shown.student_head)
        return value, (report, projection.center[...])

    return jax.value_and_grad(loss, has_aux=True)(parts)


def measure(scene: Scene):
    """Loss, report and new center, and the gradients by all parameters, by module."""
    split = {name: nnx.split(getattr(scene, name)) for name in MODULES}
    graphdefs = {name: graphdef for name, (graphdef, _) in split.items()}
    parts = {name: nnx.to_pure_dict(state) for name, (_, state) in split.items()}
    (loss, (report, center)), grads = _measure(
        scene.objective, scene.batch, parts, graphdefs, scene.key
    )
    return float(loss), {k: float(x) for k, x in report.items()}, np.asarray(center), grads


def gelu(x: np.ndarray) -> np.ndarray:
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def project(head, x: np.ndarray) -> np.ndarray:
    """The projection in float64."""
    x = np.float64(x)
    for i, layer in enumerate((head.fc1, head.fc2, head.fc3)):
        x = (gelu(x) if i else x) @ np.float64(layer.kernel[...]) + np.float64(layer.bias[...])
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def directions(head) -> np.ndarray:
    kernel = np.float64(head.prototypes.kernel[...])
    return kernel / np.linalg.norm(kernel, axis=0)


def by_hand(student, teacher, student_kernel, teacher_kernel, center, weights):
    """Loss, weighted entropy and weighted targets over prototypes, in float64."""
    doubles = [x.astype(np.float64) for x in (student, teacher, student_kernel, teacher_kernel)]
    student, teacher, student_kernel, teacher_kernel = doubles
    targets = softmax((teacher @ teacher_kernel - center) / 0.04, axis=-1)
    guesses = log_softmax(student @ student_kernel / 0.1, axis=-1)
    losses = -np.einsum("nk,nvk->nv", targets, guesses)
    logs = np.log(targets, where=targets > 0, out=np.zeros_like(targets))
    entropy = -(targets * logs).sum(1)
    row = weights.sum(1)
    return (weights * losses).sum(), (row * entropy).sum(), row @ targets


def matched(heads, student, teacher, weights):
    """Loss, mean entropy, usage and new center that features [n, V, D] and [n, D] should give."""
    mine, other = heads
    vectors, kernel = project(other, teacher), directions(other)
    center = np.float64(mine.center[...])
    loss, entropy, targets = by_hand(
        project(mine, student), vectors, directions(mine), kernel, center, weights
    )
    row = weights.sum(1) / weights.sum()
    mean, total = targets / weights.sum(), weights.sum()
    usage = np.exp(-(mean * np.log(mean)).sum()) / len(mean)
    return loss, entropy / total, usage, 0.9 * center + 0.1 * row @ (vectors @ kernel)


def participation(x: np.ndarray) -> float:
    """The participation ratio over min(n, D), from eigenvalues."""
    values = np.linalg.eigvalsh(np.cov(np.float64(x).T))
    return values.sum() ** 2 / (values**2).sum() / min(x.shape)
