"""Parts that self-distillation and masked prediction share: head, loss, monitors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from siglip2_jax.models.config import ModelConfig
from siglip2_jax.objectives.base import Objective, Teacher, View
from siglip2_jax.objectives.prototypes import ProjectionHead, distillation_loss
from siglip2_jax.sharding import has_mesh, replicate
from siglip2_jax.types import Batch

# Targets this near to uniform, as a share of log K, come from logits with a deviation of less than
# 0.5 (the missing entropy is half their variance); random directions give 1 / 16 / 0.04 = 1.6.
UNIFORM = 0.99
# A batch whose targets together have less than this share of log K has collapsed: K**0.1 is three
# of 65,536 prototypes.
CONCENTRATED = 0.1
# Below one direction in a hundred, features differ by little more than a common scale.
FLAT = 0.01


@dataclasses.dataclass(frozen=True)
class Distillation(Objective):
    """A student matches its teacher over prototypes, with centering against collapse (DINO).

    SigLIP 2 (arXiv 2502.14786, section 2.3) publishes neither the head nor the temperatures;
    these defaults are DINO's (arXiv 2104.14294).

    Attributes:
      weight: in the sum of losses.
      prototypes: K.
      hidden: width of the head's two hidden layers.
      bottleneck: size of the unit vectors that are compared with the prototypes.
      student_temperature: divides the student's cosines.
      teacher_temperature: divides the teacher's; lower, for sharper targets.
      center_momentum: how much of the center stays in a step, 0 to 1.
      chunk: how many of the student's vectors meet the prototypes at a time on a device. With
        65,536 prototypes 512 have 134 MB of float32 logits, their targets up to as many, and a
        compiled TPU program needs 440 MB for all of it. In bfloat16 TPUs take kernels, which keep
        no logits and choose how many themselves.
      implementation: of the loss, as `distillation_loss` has it.
    """

    weight: float
    prototypes: int = 65_536
    hidden: int = 2048
    bottleneck: int = 256
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    center_momentum: float = 0.9
    chunk: int = 512
    implementation: Literal["auto", "xla", "pallas"] = "auto"
    own_pass = True
    has_teacher = True

    def __post_init__(self) -> None:
        name = type(self).__name__
        for field in ("hidden", "bottleneck", "chunk"):
            if getattr(self, field) < 1:
                raise ValueError(f"{name}.{field} must be at least 1, got {getattr(self, field)}")
        if self.prototypes < 2:
            raise ValueError(f"{name}.prototypes must be at least 2, got {self.prototypes}")
        if not min(self.student_temperature, self.teacher_temperature) > 0:
            raise ValueError(
                f"{name}'s temperatures must be above 0, got {self.student_temperature} for the "
                f"student and {self.teacher_temperature} for the teacher"
            )
        if not 0 <= self.center_momentum <= 1:
            raise ValueError(
                f"{name}.center_momentum must be from 0 to 1, got {self.center_momentum}"
            )

    def projection(self, model: ModelConfig, rngs: nnx.Rngs) -> ProjectionHead:
        """A head for features of the vision tower."""
        return ProjectionHead(
            model.vision.width,
            hidden=self.hidden,
            bottleneck=self.bottleneck,
            prototypes=self.prototypes,
            rngs=rngs,
        )

    def projection_flops(self, model: ModelConfig) -> int:
        """FLOPs of the head and the prototypes for one feature, forward."""
        sizes = (model.vision.width, self.hidden, self.hidden, self.bottleneck, self.prototypes)
        return sum(2 * inputs * outputs for inputs, outputs in zip(sizes, sizes[1:], strict=False))

    def check(self, view: View, *fields: str) -> tuple[Teacher, Batch]:
        """The teacher and the batch, checked to exist and to hold these views.

        Raises:
          ValueError: one is missing.
        """
        name = type(self).__name__
        if view.teacher is None:
            raise ValueError(f"{name} learns from a moving average of the model; set optim.ema")
        assert view.batch is not None  # as examples are not compared
        if missing := [field for field in fields if field not in view.batch.fields]:
            raise ValueError(
                f"{name} reads the views {', '.join(missing)}, which the batch lacks; add "
                "SelfSupervisedViews to the transforms of the stage's data"
            )
        return view.teacher, view.batch

    def match(
        self,
        view: View,
        heads: tuple[ProjectionHead, ProjectionHead],
        student: Float[Array, "n V D"],
        teacher: Float[Array, "n D"],
        weights: Float[Array, "n V"],
        center_on: tuple[Float[Array, "m D"], Float[Array, " m"]] | None = None,
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """The loss, and a new center in the student's head.

        Args:
          view: what the step shows.
          heads: the student's, which also keeps the center, and the teacher's.
          student: its features, V for each of the teacher's.
          teacher: its features.
          weights: of the cross-entropies.
          center_on: other features of the teacher, and their weights, whose mean logits the center
            follows; None follows those of `teacher`.

        Returns:
          The weighted sum, and of the teacher's targets: `teacher_entropy`, their mean entropy in
          nats (log K if uniform), and `usage`, how many prototypes they use in all, as a share of
          K: the perplexity of the mean target.
        """
        head, dtype = heads[0], view.student.vision.dtype
        kernel = jax.lax.stop_gradient(heads[1].directions(dtype))
        targets = jax.lax.stop_gradient(heads[1].project(teacher, dtype))
        center = head.center[...]
        sums = distillation_loss(
            head.project(student, dtype),
            targets,
            head.directions(dtype),
            kernel,
            replicate(center),
            weights,
            student_temperature=self.student_temperature,
            teacher_temperature=self.teacher_temperature,
            chunk=self.chunk,
            impl=self.implementation,
        )
        row = weights.sum(axis=1)
        tiny = jnp.finfo(row.dtype).tiny
        total = jnp.maximum(row.sum(), tiny)
        vectors, shares = targets, row
        if center_on is not None:
            features, shares = center_on
            vectors = jax.lax.stop_gradient(heads[1].project(features, dtype))
        # The mean of logits is the logit of the mean.
        mean = jnp.sum(shares[:, None] * vectors, axis=0) / jnp.maximum(shares.sum(), tiny)
        logits = jnp.matmul(mean, kernel.astype(jnp.float32), precision="highest")
        head.center[...] = self.center_momentum * center + (1 - self.center_momentum) * logits
        num_used = jnp.exp(jax.scipy.special.entr(sums.targets / total).sum())
        report = {"teacher_entropy": sums.entropy / total, "usage": num_used / self.prototypes}
        return sums.loss, report

    def alarms(self, report: Mapping[str, float]) -> tuple[str, ...]:
        """Signs of collapse: uniform targets, a few prototypes for all, or flat features."""
        most, messages = math.log(self.prototypes), []
        num_used = report["usage"] * self.prototypes
        if report["teacher_entropy"] > UNIFORM * most:
            messages.append(
                f"The teacher's targets are nearly uniform: their entropy is "
                f"{report['teacher_entropy']:.3f} of at most {most:.3f} nats; if this lasts, lower "
                "teacher_temperature."
            )
        if num_used < math.exp(CONCENTRATED * most):
            messages.append(
                f"The teacher's targets have collapsed onto about {num_used:.1f} of "
                f"{self.prototypes} prototypes; lower center_momentum or raise teacher_temperature."
            )
        if report["rank"] < FLAT:
            messages.append(
                f"The student's features vary in {report['rank']:.2%} of the directions they could "
                "vary in; lower this loss's weight or the learning rate."
            )
        return tuple(messages)


def rank_share(x: Float[Array, "n D"]) -> Float[Array, ""]:
    """Number of directions in which features vary, over min(n, D); 0 if they are all the same.

    The participation ratio `trace(C)^2 / |C|_F^2` of the covariance C.

    Args:
      x: one feature per row, split over the mesh as `BATCH`.
    """
    x = x - x.mean(axis=0)
    split = PartitionSpec(None, None) if has_mesh() else None
    covariance = jnp.einsum("nd,ne->de", x, x, out_sharding=split)
    trace = jnp.trace(covariance)
    squares = jnp.square(covariance / jnp.where(trace > 0, trace, 1)).sum()
    return jnp.where(trace > 0, 1 / squares, 0) / min(x.shape)
