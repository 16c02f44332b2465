"""The structs that flow through the program, and the legend of shape letters.

B batch, N patches (padded), P values of a patch (patch_size * patch_size * 3), T text tokens,
S caption tokens, D tower width, E embedding width, H heads, K prototypes, V views or vocabulary,
G side of the position grid, L layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar, dataclass_transform

import jax
from jaxtyping import Array, Bool, Float, Int
from numpy import ndarray

ArrayLike = Array | ndarray

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def pytree_dataclass(cls: type[T]) -> type[T]:
    """Makes a class a frozen dataclass and a pytree of its fields.

    Unlike what `jax.tree_util.register_dataclass` makes, it is put together again without its
    `__init__`: JAX fills trees with placeholders, which no check of shapes should see.
    """
    frozen: type[Any] = dataclasses.dataclass(frozen=True)(cls)
    names = tuple(field.name for field in dataclasses.fields(frozen))

    def flatten(x: T) -> tuple[tuple[Any, ...], None]:
        return tuple(getattr(x, name) for name in names), None

    def flatten_with_keys(x: T) -> tuple[tuple[Any, ...], None]:
        return tuple((jax.tree_util.GetAttrKey(name), getattr(x, name)) for name in names), None

    def unflatten(_: None, values: Iterable[Any]) -> T:
        x = object.__new__(frozen)
        for name, value in zip(names, values, strict=True):
            object.__setattr__(x, name, value)
        return x

    jax.tree_util.register_pytree_with_keys(frozen, flatten_with_keys, unflatten, flatten)
    return frozen


@pytree_dataclass
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


@pytree_dataclass
class Batch:
    """Batch that one training or evaluation step reads.

    Attributes:
      image: the images.
      text: token ids, right-padded, of the model's fixed text length.
      fields: further inputs by name, for objectives that need them: arrays or `Patches` whose
        leading axis is B.
    """

    image: Patches
    text: Int[ArrayLike, "B T"]
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)


@pytree_dataclass
class Features:
    """Outputs of the towers: all that objectives, evaluators and users see.

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
