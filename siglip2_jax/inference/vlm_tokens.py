"""Image tokens for a language model: of chosen blocks, without padding, neighbours merged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from siglip2_jax.types import ArrayLike


class States(NamedTuple):
    """Outputs of the vision tower for a batch.

    Attributes:
      tokens: of K layers.
      valid: true for real patches, which are in row-major order.
      grid: rows and columns of each image's patches.
    """

    tokens: Float[ArrayLike, "B K N D"]
    valid: Bool[ArrayLike, "B N"]
    grid: Int[ArrayLike, "B 2"]


class ImageTokens(NamedTuple):
    """Tokens of one image, without padding.

    Attributes:
      tokens: float32 [K, n, C]: for each of K layers, `rows * columns` tokens in row-major order.
        C is `merge**2` times the tower's width: a block of patches one after the other, in
        row-major order, as Qwen-VL and LFM2-VL concatenate them.
      grid: rows and columns of the tokens.
    """

    tokens: Float[np.ndarray, "K n C"]
    grid: tuple[int, int]


def block_counts(layers: Sequence[int], depth: int) -> tuple[int, ...]:
    """Numbers of blocks behind which `layers` lie, counted as `hidden_states` of transformers.

    Raises:
      ValueError: there are no layers, or the tower does not have one of them.
    """
    numbers = range(depth + 1)
    if not layers or not all(-len(numbers) <= layer < len(numbers) for layer in layers):
        raise ValueError(
            f"layers is {tuple(layers)}; expected numbers from {-len(numbers)} to {depth}, as the "
            f"vision tower has {depth} blocks and 0 is what the first one reads"
        )
    return tuple(numbers[layer] for layer in layers)


def split_images(states: States, merge: int) -> Iterator[ImageTokens]:
    """The tokens of each image of a batch.

    Args:
      states: of the batch, as NumPy arrays.
      merge: side of the blocks of patches that become one token. Where it does not divide a grid,
        the last row or column is repeated.

    Raises:
      ValueError: the valid patches of an image are not a whole grid.
    """
    for layers, valid, grid in zip(*states, strict=True):
        tokens, (rows, columns) = layers[:, valid], grid.tolist()
        count, patches, width = tokens.shape
        if patches != rows * columns:
            raise ValueError(
                f"an image has {patches} valid patches in a grid of {rows} x {columns}; expected "
                f"all {rows * columns} of them"
            )
        maps = tokens.reshape(count, rows, columns, width)
        missing = [(0, 0), (0, -rows % merge), (0, -columns % merge), (0, 0)]
        maps = np.pad(maps, missing, mode="edge") if patches else maps
        rows, columns = maps.shape[1] // merge, maps.shape[2] // merge
        blocks = maps.reshape(count, rows, merge, columns, merge, width).swapaxes(2, 3)
        merged = blocks.reshape(count, rows * columns, merge**2 * width)
        yield ImageTokens(merged, (rows, columns))
