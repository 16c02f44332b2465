"""The three resizes in use: both of the official code, and Pillow's for Hugging Face's results.

They differ visibly: on shrinking images, bilinear with and without antialiasing are several grey
levels apart on average, so which one a checkpoint was trained with is part of the checkpoint.
"""

from math import ceil
from typing import Literal

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from PIL import Image

Resample = Literal["bilinear", "bicubic"]

# Neighbouring outputs share most of their inputs, so a few are computed in one small dense product.
_BAND = 4
# OpenBLAS computes products of up to this many multiply-adds on the calling thread. Larger ones
# would start its thread pool, which slows down loaders that have a worker on every core.
_MAX_PRODUCT = 2**18


def resize_antialias(
    image: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]
) -> Float32[np.ndarray, "h w 3"]:
    """Bilinear, antialiased: the native-resolution (NaFlex) resize of the official pipeline.

    Equal to `tf.image.resize(image, size, antialias=True)` up to float32 rounding: half-pixel
    centres, a triangle filter as wide as the shrink factor, weights renormalised at the edges.

    Args:
      image: pixels in 0..255.
      size: height and width of the result.

    Returns:
      The resized image in 0..255, not rounded.

    Raises:
      ValueError: `size` is less than one pixel.
    """
    (height, width), (out_height, out_width) = image.shape[:2], _checked(size)
    rows = image.reshape(height, width * 3)
    starts, weights = _bands(height, out_height)
    tall = np.empty((len(starts) * _BAND, width * 3), np.float32)
    step = max(1, _MAX_PRODUCT // weights[0].size)
    # Converted piece by piece, so that a large image never exists in float32.
    buffer = np.empty((weights.shape[2], step), np.float32)
    for band, (start, weight) in enumerate(zip(starts, weights, strict=True)):
        window = rows[start : start + len(buffer)]
        out = tall[band * _BAND : (band + 1) * _BAND]
        for x in range(0, width * 3, step):
            piece = buffer[:, : width * 3 - x]
            piece[...] = window[:, x : x + step]
            np.matmul(weight, piece, out=out[:, x : x + step])
    resized = _resize_width(tall[:out_height], width, out_width).reshape(out_height, out_width, 3)
    return resized.clip(0, 255, out=resized)  # weights add up to 1 only within float32


def _resize_width(
    rows: Float32[np.ndarray, "h in"], width: int, out_width: int
) -> Float32[np.ndarray, "h out"]:
    """The second pass, on rows of interleaved RGB."""
    starts, weights = _interleaved_bands(width, out_width)
    band_width = weights.shape[2]
    wide = np.empty((len(rows), len(starts) * band_width), np.float32)
    step = max(1, _MAX_PRODUCT // weights[0].size)
    for band, (start, weight) in enumerate(zip(starts, weights, strict=True)):
        window = rows[:, start * 3 : start * 3 + len(weight)]
        out = wide[:, band * band_width : (band + 1) * band_width]
        for y in range(0, len(rows), step):
            np.matmul(window[y : y + step], weight, out=out[y : y + step])
    return wide[:, : out_width * 3]


def _bands(
    size: int, out_size: int
) -> tuple[Int64[np.ndarray, "bands"], Float32[np.ndarray, "bands out taps"]]:
    """The filter in windows on the input: where each starts, its weights for `_BAND` outputs."""
    # Float32, in TensorFlow's order: between large sizes a centre's rounding error is what differs
    # most from the exact filter, and checkpoints were trained with it.
    scale = 1 / (np.float32(out_size) / np.float32(size))
    radius = max(np.float32(1), scale)
    # The last band repeats the last output where `_BAND` does not divide `out_size`.
    outputs = np.minimum(np.arange(-(-out_size // _BAND) * _BAND), out_size - 1)
    centres = ((outputs.astype(np.float32) + 0.5) * scale).reshape(-1, _BAND, 1)
    taps = min(size, ceil((_BAND - 1) * scale + 2 * radius) + 1)
    starts = np.floor(centres[:, 0, 0] - radius).astype(np.int64).clip(0, size - taps)
    inputs = (starts[:, None, None] + np.arange(taps)).astype(np.float32) + 0.5
    weights = np.maximum(0, 1 - np.abs(inputs - centres) * (1 / radius))
    return starts, weights / weights.sum(-1, keepdims=True)


def _interleaved_bands(
    size: int, out_size: int
) -> tuple[Int64[np.ndarray, "bands"], Float32[np.ndarray, "bands taps_rgb out_rgb"]]:
    """`_bands` for rows of interleaved RGB: transposed, each weight a multiple of the identity.

    Two of three products are with zero, which is still faster than transposing the image.
    """
    starts, weights = _bands(size, out_size)
    bands, out, taps = weights.shape
    spread = np.zeros((bands, taps, 3, out, 3), np.float32)
    for channel in range(3):
        spread[:, :, channel, :, channel] = weights.swapaxes(1, 2)
    return starts, spread.reshape(bands, taps * 3, out * 3)


def resize_no_antialias(
    image: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "h w 3"]:
    """Bilinear between the four nearest pixels: the fixed-resolution resize of the official code.

    Bit-equal to `tf.image.resize(image, size, antialias=False)` cast to uint8: float32 throughout,
    columns before rows, and the fraction cut off, not rounded.

    Args:
      image: pixels in 0..255.
      size: height and width of the result.

    Returns:
      The resized image in 0..255.

    Raises:
      ValueError: `size` is less than one pixel.
    """
    height, width = _checked(size)
    rows = image.reshape(image.shape[0], -1)
    top, bottom, down = _neighbours(image.shape[0], height)
    left, right, across = _neighbours(image.shape[1], width)
    # Columns of interleaved RGB: far faster to gather and to scale than triples.
    left, right = (np.add.outer(column * 3, np.arange(3)).ravel() for column in (left, right))
    across, down = np.repeat(across, 3), down[:, None]

    def blend_columns(pixels: np.ndarray) -> np.ndarray:
        near = pixels.take(left, axis=1).astype(np.float32)
        far = pixels.take(right, axis=1).astype(np.float32)
        return near + (far - near) * across

    upper, lower = blend_columns(rows[top]), blend_columns(rows[bottom])
    blended = upper + (lower - upper) * down
    return blended.clip(0, 255).astype(np.uint8).reshape(height, width, 3)


def _neighbours(
    size: int, out_size: int
) -> tuple[
    Int64[np.ndarray, "out"],
    Int64[np.ndarray, "out"],
    Float32[np.ndarray, "out"],
]:
    """The two inputs around each output's centre, and how far it lies from the first."""
    scale = np.float32(size) / np.float32(out_size)
    centres = (np.arange(out_size, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    floor = np.floor(centres)
    first = np.maximum(floor, 0).astype(np.int64)
    second = np.minimum(np.ceil(centres), size - 1).astype(np.int64)
    return first, second, centres - floor


def resize_pillow(
    image: Image.Image, size: tuple[int, int], resample: Resample = "bilinear"
) -> UInt8[np.ndarray, "h w 3"]:
    """Pillow's own resize, antialiased and rounded to 8 bits, as Hugging Face's processors do.

    Args:
      image: in mode "RGB".
      size: height and width of the result.
      resample: the filter.

    Returns:
      The resized image in 0..255.

    Raises:
      ValueError: `size` is less than one pixel.
    """
    height, width = _checked(size)
    return np.asarray(image.resize((width, height), Image.Resampling[resample.upper()]))


def _checked(size: tuple[int, int]) -> tuple[int, int]:
    if min(size) < 1:
        raise ValueError(f"An image cannot be resized to {size[0]} x {size[1]} pixels.")
    return size
