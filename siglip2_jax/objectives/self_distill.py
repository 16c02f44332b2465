"""Self-distillation from local views to a global one (SILC, arXiv 2310.13355, section 3.2).

SigLIP 2 (arXiv 2502.14786, section 2.3): the student sees 8 small crops of an image and matches
what its moving average sees in the full image, in the space of a separate head.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import ModelConfig
from siglip2_jax.models.flops import vision_flops
from siglip2_jax.models.siglip2 import SigLIP2
from siglip2_jax.objectives.base import View, all_views
from siglip2_jax.objectives.distillation import Distillation, rank_share
from siglip2_jax.objectives.prototypes import ProjectionHead
from siglip2_jax.sharding import reshape_rows
from siglip2_jax.types import Batch, Patches

LOCAL, GLOBAL = "local", "global"


@dataclasses.dataclass(frozen=True)
class SelfDistill(Distillation):
    """Each local view against the teacher's global view, by pooled features.

    The pooled feature is the pooling head's output before normalisation; the text tower takes no
    part. The paper's weights are 1.0 times 0.25 for B, 0.5 for L, 1.0 for So400m and 0.5 for g.

    Attributes:
      views_at_once: how many local views of an image go through the student in one pass; the
        others follow, and the backward pass computes each pass again. None is all of them, which is
        faster and takes more memory.
    """

    views_at_once: int | None = None
    towers = ("vision",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.views_at_once is not None and self.views_at_once < 1:
            raise ValueError(
                f"SelfDistill.views_at_once must be at least 1 or None, got {self.views_at_once}"
            )

    def head(self, model: ModelConfig, compute: Compute, *, rngs: nnx.Rngs) -> ProjectionHead:
        """A projection of pooled features."""
        return self.projection(model, rngs)

    def flops(self, model: ModelConfig, batch: Batch) -> int:
        """The student's local views, the teacher's global view, and their heads.

        The teacher's pass, which masked prediction shares, is counted here alone.
        """
        (size, views, patches), seen = batch.fields[LOCAL].valid.shape, batch.fields[GLOBAL]
        head = self.projection_flops(model)
        student = vision_flops(model.vision, patches) + head
        teacher = vision_flops(model.vision, seen.valid.shape[-1]) + head
        return size * (3 * views * student + teacher)

    def loss(self, head: ProjectionHead, view: View) -> tuple[Array, dict[str, Array]]:
        """The mean over views and images; `teacher_entropy`, `usage` and `rank`.

        `rank` is how many directions the student's pooled features of the original images vary in
        (`rank_share`).

        Raises:
          ValueError: there is no teacher, the batch lacks the views, or `views_at_once` does not
            divide them.
        """
        mean, batch = self.check(view, LOCAL, GLOBAL)
        student = self._student(view.student, batch)
        teacher = jnp.asarray(mean.features(GLOBAL).pooled)
        weights = jnp.full_like(student[..., 0], 1 / (student.shape[0] * student.shape[1]))
        loss, report = self.match(view, (head, mean.head), student, teacher, weights)
        return loss, report | {"rank": rank_share(jnp.asarray(view.features.pooled))}

    def _student(self, model: SigLIP2, batch: Batch) -> Float[Array, "B V D"]:
        """Student's embeddings of the local views."""
        local = batch.fields[LOCAL]
        rows, views = local.valid.shape[:2]
        at_once = self.views_at_once or views
        if views % at_once:
            raise ValueError(
                f"SelfDistill.views_at_once is {at_once}, which does not divide the {views} local "
                "views; choose a divisor, or None"
            )

        def encode(_: None, part: Patches) -> tuple[None, Array]:
            some = dataclasses.replace(batch, fields={LOCAL: part})
            pooled = jnp.asarray(model.encode_image(all_views(some, LOCAL)).pooled)
            return None, reshape_rows(pooled, (rows, at_once, pooled.shape[-1]))

        if at_once == views:
            return encode(None, local)[1]
        passes = (rows, views // at_once, at_once)
        parts = jax.tree.map(
            lambda x: jnp.moveaxis(reshape_rows(x, (*passes, *x.shape[2:])), 1, 0), local
        )
        pooled = jnp.moveaxis(jax.lax.scan(jax.checkpoint(encode), None, parts)[1], 0, 1)
        return reshape_rows(pooled, (rows, views, pooled.shape[-1]))
