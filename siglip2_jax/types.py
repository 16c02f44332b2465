"""The structs that flow through the program, and the legend of shape letters.

B batch, N patches (padded), P values of a patch (patch_size * patch_size * 3), T text tokens,
S caption tokens, D tower width, E embedding width, H heads, K prototypes, V views or vocabulary,
G side of the position grid, L layers.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
from jaxtyping import Array, Bool, Float, Int
from numpy import ndarray

ArrayLike = Array | ndarray


@flax.struct.dataclass
class Patches:
    """Images as patches: one type for fixed and native resolution.

    A square image at fixed resolution is the case where every patch is valid. What stands in
    padding (`valid` false) never changes a valid output, NaN included.

    Attributes:
      pixels: in [-1, 1]; patches in row-major order, each flattened as (row, column, channel).
      yx: row and column of each patch in its image's grid.
      valid: true for patches of the image, false for padding.
    """

    pixels: Float[ArrayLike, "*B N P"]
    yx: Int[ArrayLike, "*B N 2"]
    valid: Bool[ArrayLike, "*B N"]


@flax.struct.dataclass
class Batch:
    """What one training or evaluation step reads.

    Attributes:
      image: the images.
      text: token ids, right-padded, of the model's fixed text length.
      extra: further inputs by name, for objectives that need them: arrays or `Patches` whose
        leading axis is B.
    """

    image: Patches
    text: Int[ArrayLike, "B T"]
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)


@flax.struct.dataclass
class Features:
    """What the towers give: all that objectives, evaluators and users see.

    Attributes:
      tokens: patch tokens after the last LayerNorm; rows where `valid` is false are meaningless.
      pooled: the image pooling head's output, before normalisation.
      image: unit-length image embeddings. SigLIP 2 has no projection on the image side, so E = D.
      text: unit-length text embeddings; None where only images were given.
      valid: true for real patches. Where gradients are accumulated, objectives that compare
        examples get neither `tokens` nor `valid`.
      grid: rows and columns of each image's patch grid.
    """

    tokens: Float[ArrayLike, "B N D"] | None
    pooled: Float[ArrayLike, "B D"]
    image: Float[ArrayLike, "B D"]
    valid: Bool[ArrayLike, "B N"] | None
    grid: Int[ArrayLike, "B 2"]
    text: Float[ArrayLike, "B E"] | None = None
