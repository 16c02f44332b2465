"""Weights of 8 bits, and products with them."""

from __future__ import annotations

from types import EllipsisType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.tree_util import DictKey
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from siglip2_jax.sharding import reshape_whole

T = TypeVar("T")

LARGEST = 127
"""Largest whole number, and the smallest but for its sign: zero is zero, and nothing is added."""


@jax.tree_util.register_pytree_with_keys_class
class Int8:
    """An array in 8 bits, `values * scale`, in the place of a float32 parameter.

    Attributes:
      values: int8, of the array's shape.
      scale: float32 `[…, n]`: one for each entry of the leading dimensions and each of the n
        entries of the last ones, flattened; those between share it.
    """

    def __init__(self, values: Any, scale: Any):
        self.values, self.scale = values, scale

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, Any], ...], None]:
        """Children with their keys, by which paths of parameters end in `/values` and `/scale`."""
        return ((DictKey("values"), self.values), (DictKey("scale"), self.scale)), None

    @classmethod
    def tree_unflatten(cls, _: None, children: tuple[Any, Any]) -> Int8:
        """The array of its children."""
        return cls(*children)

    def __getitem__(self, key: EllipsisType) -> Int8:
        """The array itself: NNX reads a parameter's value as `param[...]`."""
        return self

    def astype(self, dtype: DTypeLike) -> Array:
        """The array multiplied out, in another dtype."""
        whole = self.values.reshape(*self.scale.shape[:-1], -1, self.scale.shape[-1])
        return (whole * self.scale[..., None, :]).astype(dtype).reshape(self.values.shape)


def multiply_out(module: T) -> T:
    """Makes every array of 8 bits in a module float32; leaves the others as they are."""
    return jax.tree.map(
        lambda x: x.astype(jnp.float32) if isinstance(x, Int8) else x,
        module,
        is_leaf=lambda x: isinstance(x, Int8),
    )


def matmul_int8(x: Float[Array, "*B I"], kernel: Int8) -> Float[Array, "*B O"]:
    """Product of tokens and a kernel in whole numbers, 8 bits by 8 bits into 32.

    Each token is scaled by its largest entry and rounded to 8 bits, too; float32 out.
    """
    outputs = kernel.scale.shape[-1]
    values = reshape_whole(kernel.values, (kernel.values.size // outputs, outputs))
    x = x.astype(jnp.float32)
    scale = jnp.abs(x).max(-1, keepdims=True) / LARGEST
    # A token of zeros stays one.
    whole = jnp.round(x / jnp.where(scale == 0, 1, scale)).astype(jnp.int8)
    sums = jnp.matmul(whole, values, preferred_element_type=jnp.int32)
    return sums.astype(jnp.float32) * scale * kernel.scale
