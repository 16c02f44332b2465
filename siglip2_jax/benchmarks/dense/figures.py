"""Figures of a dense probe: image, truth and prediction side by side."""

from __future__ import annotations

import colorsys
import os
from io import BytesIO

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from siglip2_jax.outputs import write_whole
from siglip2_jax.preprocess.decode import ImageSource, decode

Colours = UInt8[np.ndarray, "H W 3"]
_NEAR_TO_FAR = np.array([[252, 253, 191], [252, 137, 97], [183, 55, 121], [81, 18, 124], [0, 0, 4]])


def class_colours(classes: Int[np.ndarray, "H W"]) -> Colours:
    """A colour for each class, far from those of its neighbours in number; void is black."""
    # Steps of the golden ratio around the circle of hues never repeat a hue.
    hues = [colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.75, 0.95) for i in range(classes.max() + 1)]
    palette = np.array([(0, 0, 0), *hues])
    return (palette[np.maximum(classes, -1) + 1] * 255).round().astype(np.uint8)


def depth_colours(depth: Float[np.ndarray, "H W"], far: float) -> Colours:
    """Pale yellow at 0 to near black at `far` metres and beyond; unknown (0 or less) is white."""
    place = np.clip(depth / far, 0, 1) * (len(_NEAR_TO_FAR) - 1)
    stops = np.arange(len(_NEAR_TO_FAR))
    channels = [np.interp(place, stops, channel) for channel in _NEAR_TO_FAR.T]
    coloured = np.stack(channels, axis=-1).round().astype(np.uint8)
    return np.where(depth[..., None] > 0, coloured, np.uint8(255))


def normal_colours(normals: Float[np.ndarray, "H W 3"]) -> Colours:
    """Each axis from -1 to 1 as 0 to 255; unknown (the zero vector) is black."""
    coloured = ((normals + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
    return np.where(normals.any(axis=-1, keepdims=True), coloured, np.uint8(0))


def write_figure(
    path: str | os.PathLike[str], image: ImageSource, truth: Colours, predicted: Colours
) -> None:
    """Writes one PNG: the image in the label's size, the truth, the prediction."""
    height, width = truth.shape[:2]
    small = decode(image).resize((width, height), Image.Resampling.BILINEAR)
    data = BytesIO()
    joined = np.concatenate([np.asarray(small), truth, predicted], axis=1)
    Image.fromarray(joined).save(data, "PNG")
    write_whole(path, data.getvalue())
