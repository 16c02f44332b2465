"""Scenes whose tokens tell their labels, a model that gives such tokens, and a plain resize."""

from pathlib import Path

import numpy as np
from PIL import Image

from siglip2_jax.benchmarks.dense.data import DenseData
from siglip2_jax.inference.embedder import Embedder
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.preprocess.patches import patchify
from siglip2_jax.types import Features

PATCH, BUDGET = 8, 20
GRIDS = ((4, 5), (5, 4), (3, 4), (2, 6), (4, 4), (6, 3))  # the last two are for testing


class Whole(ImagePreprocessor):
    """Images are cut into patches in the size that they have."""

    def to_patches(self, image, max_num_patches=256):
        pixels = np.asarray(image, np.float32) / 127.5 - 1
        return patchify(pixels, PATCH), (pixels.shape[0] // PATCH, pixels.shape[1] // PATCH)

    def num_tokens(self, max_num_patches=256):
        return BUDGET


class Painted(Embedder):
    """A token is the mean colour of its patch; padding is NaN."""

    preprocess = Whole(PATCH, None)

    def __init__(self):
        pass

    def image_features(self, image):
        colours = image.pixels.reshape(*image.valid.shape, -1, 3).mean(-2) / 2 + 0.5
        valid = image.valid[..., None]
        count = np.maximum(valid.sum(1), 1)
        pooled = np.where(valid, colours, 0).sum(1) / count
        return Features(
            tokens=np.where(valid, colours, np.float32(np.nan)),
            pooled=pooled.astype(np.float32),
            image=pooled.astype(np.float32),
            valid=image.valid,
            grid=np.where(valid, image.yx + 1, 0).max(1),
        )


def write_scenes(folder: Path, kind: str) -> DenseData:
    """Photos of red, green and blue areas; labels of twice their size, void at the left edge.

    `kind` is "classes" (red 0, green 1, blue 2), "depth" (red 1, green 3, blue 7 m) or "normals"
    (an axis for each colour).
    """
    rng = np.random.default_rng(0)
    pairs = []
    for i, (rows, columns) in enumerate(GRIDS):
        # Areas of 2 x 2 patches, so that edges between them are a small part.
        areas = rng.integers(0, 3, (-(-rows // 2), -(-columns // 2)))
        areas[0, 0], areas[-1, -1] = i % 3, (i + 1) % 3
        classes = areas.repeat(2, 0).repeat(2, 1)[:rows, :columns].repeat(PATCH, 0).repeat(PATCH, 1)
        photo, label = folder / f"{i}.png", folder / f"{i}.{kind}.png"
        Image.fromarray((np.eye(3)[classes] * 200 + 20).astype(np.uint8)).save(photo)
        wide = classes.repeat(2, 0).repeat(2, 1)
        drawn = {
            "classes": wide.astype(np.uint8),
            "depth": np.array([1000, 3000, 7000], np.uint16)[wide],
            "normals": np.where(np.eye(3)[wide] > 0, 255, 127).astype(np.uint8),
        }[kind]
        drawn[:, :2] = {"classes": 255, "depth": 65535, "normals": 0}[kind]
        Image.fromarray(drawn).save(label)
        pairs.append((str(photo), str(label)))
    return DenseData(train=tuple(pairs[:4]), test=tuple(pairs[4:]))


def plain_bilinear(values, height, width):
    """float64, one pixel at a time, borders repeated."""
    rows, columns = values.shape[:2]
    out = np.zeros((height, width, *values.shape[2:]))
    for y in range(height):
        for x in range(width):
            fy = min(max((y + 0.5) * rows / height - 0.5, 0), rows - 1)
            fx = min(max((x + 0.5) * columns / width - 0.5, 0), columns - 1)
            y0, x0 = int(fy), int(fx)
            y1, x1 = min(y0 + 1, rows - 1), min(x0 + 1, columns - 1)
            top = values[y0, x0] * (1 - fx + x0) + values[y0, x1] * (fx - x0)
            low = values[y1, x0] * (1 - fx + x0) + values[y1, x1] * (fx - x0)
            out[y, x] = top * (1 - fy + y0) + low * (fy - y0)
    return out
