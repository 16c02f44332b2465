"""Masked prediction of patch features (TIPS, arXiv 2410.16512, section 3.2; after iBOT).

SigLIP 2 (arXiv 2502.14786, section 2.3): half of the embedded patches of the student's view become
mask tokens, and at those positions it matches what its moving average sees in the same view.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from siglip2_jax.models.config import ModelConfig
from siglip2_jax.models.flops import vision_flops
from siglip2_jax.models.layers import Compute
from siglip2_jax.objectives.base import View, all_views
from siglip2_jax.objectives.distillation import Distillation, rank_share
from siglip2_jax.objectives.prototypes import ProjectionHead
from siglip2_jax.sharding import BATCH, has_mesh, reshape_rows
from siglip2_jax.types import Batch, Features

GLOBAL = "global"


class MaskHead(nnx.Module):
    """A projection of patch features, and what stands in place of hidden patches."""

    def __init__(self, projection: ProjectionHead, width: int, *, rngs: nnx.Rngs):
        self.projection = projection
        self.mask_token = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (width,)))


@dataclasses.dataclass(frozen=True)
class MaskedPrediction(Distillation):
    """Hidden patches against the teacher's features of them, by tokens after the last norm.

    The paper's weights are 0.25 times 0.25 for B, 0.5 for L, 1.0 for So400m and 0.5 for g.

    Attributes:
      ratio: the share of an image's valid patches that is hidden, above 0 and up to 1.
      center: the patches over which the center is a mean: "hidden", the targets themselves, or
        "all" valid ones, as in iBOT (arXiv 2111.07832), for which the teacher's head sees all.
    """

    ratio: float = 0.5
    center: Literal["hidden", "all"] = "hidden"
    towers = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ratio <= 1:
            raise ValueError(
                f"MaskedPrediction.ratio must be above 0 and at most 1, got {self.ratio}"
            )
        if self.center not in ("hidden", "all"):
            raise ValueError(
                f'MaskedPrediction.center must be "hidden" or "all", got {self.center!r}'
            )

    def head(self, model: ModelConfig, compute: Compute, *, rngs: nnx.Rngs) -> MaskHead:
        """A projection of patch features, and the mask token."""
        return MaskHead(self.projection(model, rngs), model.vision.width, rngs=rngs)

    def flops(self, model: ModelConfig, batch: Batch) -> int:
        """The student's pass over the global view, and the heads of both at the hidden patches.

        The teacher's pass is counted where it is shared from: in self-distillation.
        """
        size, _, patches = batch.fields[GLOBAL].valid.shape
        head = self.projection_flops(model)
        hidden = math.ceil(self.ratio * patches)
        projected = (3 + 1) * hidden * head
        if self.center == "all":  # and not compared with the prototypes
            projected += patches * (head - 2 * self.bottleneck * self.prototypes)
        return size * (3 * vision_flops(model.vision, patches) + projected)

    def loss(self, head: MaskHead, view: View) -> tuple[Array, dict[str, Array]]:
        """The mean over an image's hidden patches, then over images; what `match` reports; `rank`.

        An image without hidden patches counts as 0. `rank` is how many directions the student's
        feature of one hidden patch of each image varies in (`rank_share`).

        Raises:
          ValueError: there is no teacher, or the batch lacks the view.
        """
        mean, batch = self.check(view, GLOBAL)
        image = all_views(batch, GLOBAL)
        valid = jnp.asarray(image.valid)
        masked, positions, weights = choose_patches(valid, self.ratio, view.key)
        features = view.student.encode_image(image, masked, head.mask_token[...])
        student, teacher = (
            jnp.take_along_axis(jnp.asarray(x.tokens), positions[..., None], axis=1)
            for x in (features, mean.features(GLOBAL))
        )
        count, width = weights.size, student.shape[-1]
        loss, report = self.match(
            view,
            (head.projection, mean.head.projection),
            reshape_rows(student, (count, 1, width)),
            reshape_rows(teacher, (count, width)),
            reshape_rows(weights, (count, 1)),
            _every_patch(mean.features(GLOBAL)) if self.center == "all" else None,
        )
        return loss, report | {"rank": rank_share(student[:, 0])}


def _every_patch(teacher: Features) -> tuple[Float[Array, "m D"], Float[Array, " m"]]:
    """The teacher's features of all patches; images weigh alike, and so do their patches."""
    tokens, valid = jnp.asarray(teacher.tokens), jnp.asarray(teacher.valid)
    weights = valid / jnp.maximum(valid.sum(axis=1, keepdims=True), 1)
    count = valid.size
    return reshape_rows(tokens, (count, tokens.shape[-1])), reshape_rows(weights, (count,))


def choose_patches(
    valid: Bool[Array, "B N"], ratio: float, key: Array
) -> tuple[Bool[Array, "B N"], Int[Array, "B M"], Float[Array, "B M"]]:
    """Hides `round(ratio * valid)` valid patches of each image, every set of them as likely.

    Args:
      valid: which patches exist.
      ratio: how many of them to hide, 0 to 1.
      key: decides which, alike on any number of devices.

    Returns:
      masked: true where a patch is hidden.
      positions: where, with M = ceil(ratio * N); beyond an image's count, other patches.
      weights: 1 over the image's count and over B, and 0 for those other patches.
    """
    size, patches = valid.shape
    draws = jax.random.uniform(key, valid.shape, out_sharding=BATCH if has_mesh() else None)
    order = jnp.argsort(jnp.where(valid, draws, 2), axis=1)  # valid patches first, shuffled
    count = jnp.round(ratio * valid.sum(axis=1, keepdims=True))
    masked = jnp.argsort(order, axis=1) < count
    positions = order[:, : math.ceil(ratio * patches)]
    chosen = jnp.arange(positions.shape[1]) < count
    return masked, positions, chosen / jnp.maximum(count, 1) / size
