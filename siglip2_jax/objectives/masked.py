"""Masked prediction of patch features (TIPS, arXiv 2410.16512, section 3.2; after iBOT).

SigLIP 2 (arXiv 2502.14786, section 2.3): half of the embedded patches of the student's view become
mask tokens, and at those positions it matches what its moving average sees in the same view.
TIPSv2 (arXiv 2604.12012, section 3.3) matches it at all positions: iBOT++.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import ModelConfig
from siglip2_jax.models.flops import vision_flops
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
      targets: the patches whose features the student matches: "hidden" ones, or "all" valid ones,
        which holds visible patches to what the teacher makes of them (iBOT++; TIPSv2, arXiv
        2604.12012, section 3.3, equation 3, which hides 0.75). The heads then see all patches.
      center: the patches over which the center is a mean: "hidden", the targets themselves, or
        "all" valid ones, as in iBOT (arXiv 2111.07832), for which the teacher's head sees all.
        Where all are targets, it is their mean in either case.
    """

    ratio: float = 0.5
    targets: Literal["hidden", "all"] = "hidden"
    center: Literal["hidden", "all"] = "hidden"
    towers = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ratio <= 1:
            raise ValueError(
                f"MaskedPrediction.ratio must be above 0 and at most 1, got {self.ratio}"
            )
        for field in ("targets", "center"):
            if (value := getattr(self, field)) not in ("hidden", "all"):
                raise ValueError(
                    f'MaskedPrediction.{field} must be "hidden" or "all", got {value!r}'
                )

    def head(self, model: ModelConfig, compute: Compute, *, rngs: nnx.Rngs) -> MaskHead:
        """A projection of patch features, and the mask token."""
        return MaskHead(self.projection(model, rngs), model.vision.width, rngs=rngs)

    def flops(self, model: ModelConfig, batch: Batch) -> int:
        """The student's pass over the global view, and the heads of both at the targets.

        The teacher's pass is counted where it is shared from: in self-distillation.
        """
        size, _, patches = batch.fields[GLOBAL].valid.shape
        head = self.projection_flops(model)
        targets = patches if self.targets == "all" else math.ceil(self.ratio * patches)
        projected = (3 + 1) * targets * head
        if self.center != self.targets == "hidden":  # and not compared with the prototypes
            projected += patches * (head - 2 * self.bottleneck * self.prototypes)
        return size * (3 * vision_flops(model.vision, patches) + projected)

    def loss(self, head: MaskHead, view: View) -> tuple[Array, dict[str, Array]]:
        """The mean over an image's targets, then over images; what `match` reports; `rank`.

        An image without targets counts as 0. `rank` is how many directions the student's feature of
        one hidden patch of each image varies in (`rank_share`).

        Raises:
          ValueError: there is no teacher, or the batch lacks the view.
        """
        mean, batch = self.check(view, GLOBAL)
        image = all_views(batch, GLOBAL)
        valid = jnp.asarray(image.valid)
        masked, positions, weights = choose_patches(valid, self.ratio, view.key)
        features = view.student.encode_image(image, masked, head.mask_token[...])
        seen, center_on = mean.features(GLOBAL), None
        student, teacher = (jnp.asarray(x.tokens) for x in (features, seen))
        if self.targets == "all":
            weights = _even_weights(valid) / len(valid)
            one_each = _at(student, positions[:, :1])[:, 0]
        else:
            student, teacher = _at(student, positions), _at(teacher, positions)
            one_each = student[:, 0]
            center_on = _every_patch(seen) if self.center == "all" else None
        count, width = weights.size, student.shape[-1]
        loss, report = self.match(
            view,
            (head.projection, mean.head.projection),
            reshape_rows(student, (count, 1, width)),
            reshape_rows(teacher, (count, width)),
            reshape_rows(weights, (count, 1)),
            center_on,
        )
        return loss, report | {"rank": rank_share(one_each)}


def _at(tokens: Float[Array, "B N D"], positions: Int[Array, "B M"]) -> Float[Array, "B M D"]:
    """The tokens at these positions of each image."""
    return jnp.take_along_axis(tokens, positions[..., None], axis=1)


def _every_patch(teacher: Features) -> tuple[Float[Array, "m D"], Float[Array, " m"]]:
    """The teacher's features of all patches; images weigh alike, and so do their patches."""
    tokens, weights = jnp.asarray(teacher.tokens), _even_weights(jnp.asarray(teacher.valid))
    count = weights.size
    return reshape_rows(tokens, (count, tokens.shape[-1])), reshape_rows(weights, (count,))


def _even_weights(valid: Bool[Array, "B N"]) -> Float[Array, "B N"]:
    """Weights of patches that are 1 in sum over those of an image."""
    return valid / jnp.maximum(valid.sum(axis=1, keepdims=True), 1)


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
