"""Patches: an image cut into them, and those of several images padded and stacked to a batch."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Shaped

from siglip2_jax.types import Patches

# Patches of one image, without padding; rows and columns of its grid.
ImagePatches = tuple[Float32[np.ndarray, "_ P"], tuple[int, int]]


def patchify(
    image: Shaped[np.ndarray, "h w c"], patch_size: int
) -> Shaped[np.ndarray, "patches values"]:
    """Cuts an image into square patches.

    Pixels at the bottom and right that fill no whole patch are dropped, as a convolution without
    padding does: 384 pixels are 27 patches of 14.

    Returns:
      [h//p * w//p, p*p*c]: patches in row-major order, each flattened as (row, column, channel).
    """
    height, width, channels = image.shape
    rows, cols = height // patch_size, width // patch_size
    image = image[: rows * patch_size, : cols * patch_size]
    patches = image.reshape(rows, patch_size, cols, patch_size, channels).swapaxes(1, 2)
    return patches.reshape(rows * cols, patch_size * patch_size * channels)


def pad_and_stack(items: Sequence[ImagePatches], num_tokens: int) -> Patches:
    """Pads images to one length and stacks them.

    Args:
      items: for each image, its patches and the rows and columns of its grid, as
        `ImagePreprocessor.to_patches` gives them.
      num_tokens: N, the length to pad to.

    Returns:
      NumPy arrays; pixels and coordinates are zero in padding.

    Raises:
      ValueError: there are no items, or one of them has more than `num_tokens` patches.
    """
    if not items:
        raise ValueError("A batch needs at least one image.")
    out = Patches(
        pixels=np.empty((len(items), num_tokens, items[0][0].shape[1]), np.float32),
        yx=np.empty((len(items), num_tokens, 2), np.int32),
        valid=np.empty((len(items), num_tokens), np.bool_),
    )
    for i, item in enumerate(items):
        write_padded(item, out, i)
    return out


def write_padded(item: ImagePatches, out: Patches, index: int) -> None:
    """Writes the patches of one image, and zeros behind them, into arrays of several.

    Args:
      item: its patches and the rows and columns of its grid.
      out: arrays [B, N, ...], whose row `index` is written.
      index: which image of the batch it is.

    Raises:
      ValueError: it has more patches than `out` has room for.
    """
    patches, (rows, cols) = item
    length, num_tokens = len(patches), out.valid.shape[1]
    if length > num_tokens:
        raise ValueError(
            f"Image {index} of the batch has {length} patches ({rows} x {cols}), more than the "
            f"{num_tokens} the batch is padded to; preprocess it with a smaller budget."
        )
    yx = np.indices((rows, cols)).reshape(2, -1).T
    for array, values in ((out.pixels, patches), (out.yx, yx), (out.valid, True)):
        assert isinstance(array, np.ndarray)
        array[index, :length] = values
        array[index, length:] = 0
