"""The learned position table, resized to every image's own patch grid.

Antialiased bilinear resize (a triangle filter at half-pixel centres, renormalised at the edges),
as NaFlex does (SigLIP 2, arXiv 2502.14786, section 2.4.2). It is separable, so the embedding of
patch (y, x) is `sum_ij rows[y, i] * columns[x, j] * table[i, j]` with two small matrices that are
computed from the coordinates: no canvas, no limit on the grid, and nothing is ever resized
(contrast big_vision, which draws a 64x64 canvas per image and gives NaN beyond it).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from siglip2_jax.sharding import replicate


def grid_size(yx: Int[Array, "*B N 2"], valid: Bool[Array, "*B N"]) -> Int[Array, "*B 2"]:
    """Rows and columns of each image's patch grid; 0 where no patch is valid."""
    return jnp.max(jnp.where(valid[..., None], yx + 1, 0), axis=-2)


def triangle_weights(
    index: Int[Array, "*B N"], size: Int[Array, "*B"], table_size: int
) -> Float[Array, "*B N G"]:
    """Weight of each of `table_size` positions at position `index` out of `size`.

    Args:
      index: positions in the resized axis, 0 up to size - 1.
      size: length of the resized axis.
      table_size: G, length of the learned axis.

    Returns:
      float32 weights, rows summing to 1. At `size == table_size` they are exactly one-hot.
    """
    step = table_size / jnp.maximum(size, 1).astype(jnp.float32)[..., None]
    centre = (index + 0.5) * step - 0.5
    width = jnp.maximum(step, 1.0)  # wider than one entry when shrinking: the antialiasing
    distance = jnp.abs(jnp.arange(table_size) - centre[..., None]) / width[..., None]
    weights = jnp.maximum(0.0, 1.0 - distance)
    # An index beyond its axis (padding, zeroed by the caller) never reaches a zero sum.
    return weights / jnp.sum(weights, axis=-1, keepdims=True)


class PositionTable(nnx.Module):
    """Learned embeddings on a square grid."""

    def __init__(self, grid: int, width: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.normal(width**-0.5)
        self.table = nnx.Param(init(rngs.params(), (grid, grid, width), jnp.float32))

    def __call__(self, yx: Int[Array, "B N 2"], valid: Bool[Array, "B N"]) -> Float[Array, "B N D"]:
        """Embeds patch coordinates, in float32.

        Args:
          yx: row and column of each patch.
          valid: true for real patches; others count as patch (0, 0).

        Returns:
          One vector per patch.
        """
        table = replicate(self.table[...].astype(jnp.float32))
        grid = table.shape[0]
        size = grid_size(yx, valid)
        yx = jnp.where(valid[..., None], yx, 0)
        rows = triangle_weights(yx[..., 0], size[..., 0], grid)
        columns = triangle_weights(yx[..., 1], size[..., 1], grid)
        weights = rows[..., :, None] * columns[..., None, :]
        return jnp.einsum(
            "bnk,kd->bnd",
            weights.reshape(*weights.shape[:-2], grid * grid),
            table.reshape(grid * grid, -1),
            precision=jax.lax.Precision.HIGHEST,
        )
