"""Maps of images of different sizes, padded to one shape, with their true sizes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def on_grid(
    tokens: Float[Array, "B N D"], grid: Int[Array, "B 2"], side: tuple[int, int]
) -> Float[Array, "B H W D"]:
    """Rows of tokens as padded grids.

    Args:
      tokens: in row-major order, padding at the end.
      grid: rows and columns of each image.
      side: rows and columns of the result; smaller grids repeat their last row and column.
    """
    height, width = grid[:, 0, None], grid[:, 1, None]
    rows = jnp.minimum(jnp.arange(side[0]), height - 1)
    columns = jnp.minimum(jnp.arange(side[1]), width - 1)
    index = (rows * width)[:, :, None] + columns[:, None, :]
    cells = jnp.take_along_axis(tokens, index.reshape(len(index), -1, 1), axis=1)
    return cells.reshape(len(index), *side, -1)


def bilinear(
    values: Float[Array, "B H W C"],
    old: Int[Array, "B 2"],
    new: Int[Array, "B 2"],
    shape: tuple[int, int],
    *,
    align_corners: bool = False,
) -> Float[Array, "B h w C"]:
    """Bilinear resize without antialiasing, as `torch.nn.functional.interpolate` does.

    Args:
      values: finite; real within each image's `old` rows and columns, from the top left.
      old: rows and columns of each image.
      new: rows and columns to resize to, at most `shape`.
      shape: rows and columns of the result; what lies outside `new` is meaningless and finite.
      align_corners: whether the centres of corner pixels stay in place, rather than the corners of
        the image.
    """
    rows, columns = (
        _weights(old[:, i], new[:, i], values.shape[1 + i], shape[i], align_corners)
        for i in range(2)
    )
    # Rows last: the slope of the large result then goes through one plain matrix product first.
    wide = jnp.einsum("bijc,bwj->biwc", values, columns, precision="highest")
    return jnp.einsum("bhi,biwc->bhwc", rows, wide, precision="highest")


def _weights(
    old: Int[Array, " B"],
    new: Int[Array, " B"],
    old_side: int,
    new_side: int,
    align_corners: bool,
) -> Float[Array, "B new old"]:
    """Interpolation weight of each old position at each new one; 0 for padding."""
    place = jnp.arange(new_side)
    if align_corners:
        centre = place * ((old - 1) / jnp.maximum(new - 1, 1))[:, None]
    else:
        centre = (place + 0.5) * (old / new)[:, None] - 0.5
    centre = jnp.clip(centre, 0, old[:, None] - 1)
    return jnp.maximum(0, 1 - jnp.abs(centre[..., None] - jnp.arange(old_side)))


def each_image(function: Callable[..., Array], *rows: Array) -> Array:
    """Maps over images one after the other, and computes each again for its slope.

    What is as large as `pixels * channels` then exists for one image, not for a batch.
    """
    return jax.lax.map(jax.checkpoint(lambda row: function(*row)), rows)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def total_of_images(
    loss: Callable[..., Float[Array, ""]], values: Float[Array, "B H W C"], rows: tuple[Array, ...]
) -> Float[Array, ""]:
    """The sum over images of a loss of `values`, one image after the other.

    Each image's slope is computed along with its loss. What is as large as `pixels * channels` then
    exists for one image and never twice: a fraction of the memory, and on CPU less than half of the
    time, most of which goes into touching it.

    Args:
      loss: of one image's row of `values` and of each of `rows`; uses no other traced value.
      values: what the loss has a slope in.
      rows: the rest, without slopes.
    """
    return jax.lax.map(lambda row: loss(*row), (values, *rows)).sum()


def _with_slopes(loss: Callable, values: Array, rows: tuple[Array, ...]) -> tuple[Array, Array]:
    losses, slopes = jax.lax.map(lambda row: jax.value_and_grad(loss)(*row), (values, *rows))
    return losses.sum(), slopes


def _times_slopes(loss: Callable, slopes: Array, outer: Array) -> tuple[Array, None]:
    return outer * slopes, None


total_of_images.defvjp(_with_slopes, _times_slopes)
