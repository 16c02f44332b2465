"""Prototypes: a projection head, and the loss by which a student finds a teacher's prototypes.

DINO (arXiv 2104.14294, section 3.1 and appendix C), which SILC (arXiv 2310.13355) and TIPS
(arXiv 2410.16512) build on: an MLP to unit vectors, whose cosines with K unit directions are the
logits of a softmax. With tens of thousands of prototypes the logits of a batch are far larger than
anything else in the step, so the loss goes through them a few rows at a time.
"""

from __future__ import annotations

from functools import partial
from math import ceil
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from siglip2_jax.models.kernels.prototypes import (
    BLOCK,
    Rows,
    Softmax,
    match_gradients,
    match_sums,
    rows_together,
)
from siglip2_jax.models.siglip2 import normalize
from siglip2_jax.objectives.base import Buffer
from siglip2_jax.sharding import AXES, BATCH, gather, has_mesh, platform, replicate

WHOLE = PartitionSpec()


class ProjectionHead(nnx.Module):
    """Three dense layers with tanh-form GELU between, to unit length; K unit directions; a center.

    Attributes:
      center: what is taken off the teacher's logits, a running mean of them; starts at 0.
    """

    def __init__(
        self, width: int, *, hidden: int, bottleneck: int, prototypes: int, rngs: nnx.Rngs
    ):
        def linear(inputs: int, outputs: int) -> nnx.Linear:
            init = nnx.initializers.truncated_normal(0.02)
            return nnx.Linear(inputs, outputs, kernel_init=init, rngs=rngs)

        self.fc1 = linear(width, hidden)
        self.fc2 = linear(hidden, hidden)
        self.fc3 = linear(hidden, bottleneck)
        # Only directions matter; of about unit length, they turn as fast as a learning rate says.
        init = nnx.initializers.normal(bottleneck**-0.5)
        self.prototypes = nnx.Linear(
            bottleneck, prototypes, use_bias=False, kernel_init=init, rngs=rngs
        )
        self.center = Buffer(jnp.zeros(prototypes))

    def project(self, x: Float[Array, "*B D"], dtype: DTypeLike) -> Float[Array, "*B Z"]:
        """Features as float32 unit vectors.

        Args:
          x: features.
          dtype: of the matrix products, which accumulate in float32.
        """

        @jax.checkpoint  # the hidden layers are wider than the features, and cheap
        def mlp(x: Array) -> Array:
            first, *layers = gather((self.fc1, self.fc2, self.fc3), dtype)
            x = _dense(first, x, dtype)
            for layer in layers:
                x = _dense(layer, nnx.gelu(x.astype(dtype), approximate=True), dtype)
            return normalize(x)

        return mlp(x)

    def directions(self, dtype: DTypeLike) -> Float[Array, "Z K"]:
        """The prototypes at unit length, whole on every device: weight norm with a gain of 1."""
        return replicate(normalize(self.prototypes.kernel[...].T).T.astype(dtype))


def _dense(layer: nnx.Linear, x: Array, dtype: DTypeLike) -> Array:
    assert layer.bias is not None
    product = jnp.matmul(x.astype(dtype), layer.kernel[...], preferred_element_type=jnp.float32)
    return product + layer.bias[...]


class Match(NamedTuple):
    """Agreement of a student with its teacher; sums over rows with the weights of the loss.

    Attributes:
      loss: the cross-entropies, in nats.
      entropy: those of the targets, in nats: what of the loss no student can avoid. No gradient.
      targets: the targets themselves. No gradient.
    """

    loss: Float[Array, ""]
    entropy: Float[Array, ""]
    targets: Float[Array, " K"]


class Rule(NamedTuple):
    """Settings that do not change from step to step; see `distillation_loss`."""

    student_temperature: float
    teacher_temperature: float
    chunk: int
    impl: str


def distillation_loss(
    student: Float[Array, "n V Z"],
    teacher: Float[Array, "n Z"],
    student_kernel: Float[Array, "Z K"],
    teacher_kernel: Float[Array, "Z K"],
    center: Float[Array, " K"],
    weights: Float[Array, "n V"],
    *,
    student_temperature: float,
    teacher_temperature: float,
    chunk: int,
    impl: Literal["auto", "xla", "pallas"] = "auto",
) -> Match:
    """Cross-entropies between a teacher's targets and a student's guesses.

    `sum_nv weights * CE(softmax((teacher @ teacher_kernel - center) / teacher_temperature),
    softmax(student @ student_kernel / student_temperature))`, over all devices. There are never
    more than `chunk` rows of the student's logits on a device. As in the ring of the sigmoid loss,
    derivatives are found on the way, so that the backward pass computes no logits again.

    Args:
      student: V unit vectors for each of n targets, n split over the mesh as `BATCH`.
      teacher: the unit vectors that give the targets, split likewise; without gradient.
      student_kernel: unit columns, whole on every device; their dtype is that of the matrix
        products, which accumulate in float32.
      teacher_kernel: likewise; without gradient.
      center: taken off the teacher's logits, whole on every device; without gradient.
      weights: of the cross-entropies, split as `student`; without gradient.
      student_temperature: divides the student's cosines.
      teacher_temperature: divides the teacher's; a lower one gives sharper targets.
      chunk: student vectors to compare at a time, over all V, on a device; at least V are. The
        kernels, which keep no logits, take as many as fit their memory.
      impl: "xla" leaves the program to XLA; "pallas" is the kernels for TPU, which elsewhere are
        interpreted, slowly, for tests; "auto" takes them on TPU for bfloat16.

    Returns:
      Sums over n and V on all devices, float32.
    """
    if impl == "auto":
        fused = platform() == "tpu" and student_kernel.dtype == jnp.bfloat16
        impl = "pallas" if fused else "xla"
    rule = Rule(student_temperature, teacher_temperature, chunk, impl)
    return _distill(rule, student, teacher, student_kernel, teacher_kernel, center, weights)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _distill(rule: Rule, *inputs: Array) -> Match:
    return _on_mesh(rule, *inputs)[0]  # XLA drops what nobody reads, but of kernels


def _on_mesh(rule: Rule, *inputs: Array) -> tuple[Match, tuple[Array, Array]]:
    """The sums, and the derivatives of the loss by `student` and `student_kernel`."""
    if not has_mesh():
        return _local(rule, *inputs)
    specs = (BATCH, BATCH, WHOLE, WHOLE, WHOLE, BATCH)
    out_specs = WHOLE, (BATCH, WHOLE)
    run = jax.shard_map(
        partial(_local, rule),
        in_specs=specs,
        out_specs=out_specs,
        check_vma=rule.impl != "pallas",  # kernels do not say on which devices results differ
    )
    return run(*inputs)


def _backward(rule: Rule, derivatives: tuple[Array, Array], cotangent: Match) -> tuple:
    student, kernel = (x * cotangent.loss.astype(x.dtype) for x in derivatives)
    return student, None, kernel, None, None, None


_distill.defvjp(_on_mesh, _backward)


def _local(
    rule: Rule,
    student: Array,
    teacher: Array,
    student_kernel: Array,
    teacher_kernel: Array,
    center: Array,
    weights: Array,
) -> tuple[Match, tuple[Array, Array]]:
    """Computes the result of `_on_mesh` on one device, a few rows at a time."""
    shape, prototypes, (rows, views) = student.shape, center.size, weights.shape
    if rule.impl == "pallas":
        rows *= views
        size = rows_together(rows, shape[-1])
        student, weights = student.reshape(rows, 1, -1), weights.reshape(rows, 1)
        teacher = jnp.repeat(teacher, views, axis=0)
        student_kernel, teacher_kernel, center = (
            jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -prototypes % BLOCK)])
            for x in (student_kernel, teacher_kernel, center)
        )
        add_part = partial(_add_fused_part, rule, prototypes)
    else:
        size = ceil(rows / ceil(rows / max(1, rule.chunk // views)))
        add_part = partial(_add_part, rule)
    parts = ceil(rows / size)

    def split(x: Array) -> Array:
        padded = jnp.pad(x, [(0, parts * size - rows)] + [(0, 0)] * (x.ndim - 1))  # of weight 0
        return padded.reshape(parts, size, *x.shape[1:])

    def step(sums: tuple[Match, Array], part: tuple[Array, Array, Array]) -> tuple:
        return add_part(sums, *part, student_kernel, teacher_kernel, center)

    # Every device has its own value of each, which zeros made from nothing would not say.
    zero = 0 * weights[0, 0]
    match = Match(zero, zero, zero + jnp.zeros(center.shape))
    parted = split(student), split(teacher), split(weights)
    (match, d_kernel), d_student = jax.lax.scan(
        step, (match, zero + jnp.zeros(student_kernel.shape)), parted
    )
    match = match._replace(targets=match.targets[:prototypes])
    d_student = d_student.reshape(-1, *student.shape[1:])[:rows].reshape(shape)
    # It travels in this dtype, as towers' gradients do.
    d_kernel = d_kernel[:, :prototypes].astype(student_kernel.dtype)
    if has_mesh():
        match, d_kernel = jax.lax.psum((match, d_kernel), AXES)
    return match, (d_student, d_kernel)


def _add_fused_part(
    rule: Rule,
    prototypes: int,
    sums: tuple[Match, Array],
    student: Array,
    teacher: Array,
    weights: Array,
    student_kernel: Array,
    teacher_kernel: Array,
    center: Array,
) -> tuple[tuple[Match, Array], Array]:
    """Adds the sums of some rows, one view each, by the kernels; padding is zeros."""
    dtype, interpret = student_kernel.dtype, platform() != "tpu"
    vectors = student[:, 0].astype(dtype), teacher.astype(dtype)
    rows = Rows(*vectors, student_kernel, teacher_kernel, center)
    softmax = Softmax(rule.student_temperature, rule.teacher_temperature, prototypes)
    row = weights[:, 0]
    result = match_sums(rows, softmax, interpret=interpret)
    d_student, d_kernel, targets = match_gradients(
        result, rows, row, sums[1], softmax, interpret=interpret
    )
    match = Match(jnp.sum(row * result.loss), jnp.sum(row * result.entropy), targets)
    return (jax.tree.map(jnp.add, sums[0], match), d_kernel), d_student[:, None]


def _add_part(
    rule: Rule,
    sums: tuple[Match, Array],
    student: Array,
    teacher: Array,
    weights: Array,
    student_kernel: Array,
    teacher_kernel: Array,
    center: Array,
) -> tuple[tuple[Match, Array], Array]:
    """Adds the sums of some rows, and gives the derivative by `student`; XLA's program."""
    dtype = student_kernel.dtype
    cosines = _product("nz,zk->nk", teacher.astype(dtype), teacher_kernel) - center
    log_targets = jax.nn.log_softmax(cosines / rule.teacher_temperature)
    targets = jnp.exp(log_targets)
    logits = _product("nvz,zk->nvk", student.astype(dtype), student_kernel)
    logits /= rule.student_temperature
    scale = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    losses = scale[..., 0] - jnp.sum(targets[:, None] * logits, axis=-1)
    row = weights.sum(axis=1)
    match = Match(
        loss=jnp.sum(weights * losses),
        entropy=-jnp.sum(row * jnp.sum(targets * log_targets, axis=-1)),
        targets=jnp.sum(row[:, None] * targets, axis=0),
    )
    slopes = jnp.exp(logits - scale) - targets[:, None]
    slopes *= weights[..., None] / rule.student_temperature
    slopes = slopes.astype(dtype)
    d_student = _product("nvk,zk->nvz", slopes, student_kernel)
    d_kernel = _product("nvz,nvk->zk", student.astype(dtype), slopes)
    return jax.tree.map(jnp.add, sums, (match, d_kernel)), d_student


def _product(subscripts: str, a: Array, b: Array) -> Array:
    return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)
