"""Softmax distillation from a frozen teacher: what ACED adds to ACID (arXiv 2411.18674).

SigLIP 2 trained its small models without it (arXiv 2502.14786, section 2.5).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from siglip2_jax.curation.selection import REFERENCE, Embedded
from siglip2_jax.models.config import ModelConfig
from siglip2_jax.models.flops import contrastive_flops
from siglip2_jax.objectives.base import Objective, View
from siglip2_jax.sharding import replicate
from siglip2_jax.types import Batch


@dataclasses.dataclass(frozen=True)
class SoftmaxDistill(Objective):
    """Softmax distillation: trains the student to rank the batch as the teacher does.

    Attributes:
      weight: in the sum of losses.
    """

    weight: float = 1.0
    across_examples = True

    def flops(self, model: ModelConfig, batch: Batch) -> int:
        """The student's logits, forward and backward; the teacher's width is not known here."""
        return 3 * contrastive_flops(batch.text.shape[0], model.text.embed_dim)

    def loss(self, head: None, view: View) -> tuple[Array, dict[str, Array]]:
        """Cross-entropy to the teacher, and its excess over the teacher's entropy (KL divergence).

        Raises:
          ValueError: gradients are accumulated, or there is no teacher.
        """
        if view.batch is None:
            raise ValueError(
                "softmax distillation needs the teacher's embeddings of the whole batch, which it "
                "does not get where gradients are accumulated; set optim.accumulate to 1"
            )
        if REFERENCE not in view.batch.fields:
            raise ValueError(
                f"softmax distillation found {sorted(view.batch.fields)} beside images and texts, "
                f"expected a teacher's embeddings as {REFERENCE!r}; turn curation on"
            )
        student, teacher = view.student, view.batch.fields[REFERENCE]
        t, b = student.t[...], student.b[...]
        embedded = Embedded(view.features.image, jnp.asarray(view.features.text), t, b)
        loss, least = distillation_loss(embedded, teacher)
        return loss, {"divergence": loss - least}


def distillation_loss(
    student: Embedded, teacher: Embedded
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Cross-entropy between the teacher's and the student's softmax over the batch.

    Every image is compared with all texts and every text with all images; the loss is the mean of
    both over the global batch. Biases cancel; each model has its own temperature.

    Args:
      student: under differentiation; n examples.
      teacher: of the same examples; gets no gradient, and its width may differ.

    Returns:
      The loss, and the teacher's entropy: the least that the loss can be.
    """
    teacher = jax.lax.stop_gradient(teacher)
    logits, teacher_logits = _logits(student), _logits(teacher)
    loss = least = jnp.float32(0)
    for axis in (1, 0):
        target = jax.nn.log_softmax(teacher_logits, axis)
        share = jnp.exp(target) / (2 * len(target))
        loss -= jnp.sum(share * jax.nn.log_softmax(logits, axis))
        least -= jnp.sum(share * target)
    return loss, least


def _logits(x: Embedded) -> Float[Array, "n n"]:
    """Images as rows, split over the mesh; all texts on every device."""
    # TPUs multiply float32 in bfloat16 unless told otherwise.
    text = replicate(jnp.asarray(x.text))
    return jnp.exp(x.t) * jnp.matmul(x.image, text.T, precision="highest")
