"""Images with a label for every pixel: lists of files, and readers of class maps and depth."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float32, Int32
from PIL import Image

from siglip2_jax.data.text import read_rows

VOID = -1
"""Value of a class map where there is no label."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseData:
    """Paths of images and of their labels.

    Attributes:
      train: pairs (image, label) to train a probe on.
      test: pairs to measure on.
    """

    train: tuple[tuple[str, str], ...]
    test: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        if not self.train or not self.test:
            raise ValueError(
                f"dense data has {len(self.train)} training and {len(self.test)} test pairs; "
                "expected at least one of each"
            )


def read_index(
    path: str | os.PathLike[str], *, label: str = "label", train: str = "train", test: str = "test"
) -> DenseData:
    """Reads a file of JSON lines: `{"image": path, "label": path, "split": name}`.

    Args:
      path: the file; the paths in it are relative to its folder. Other keys, and rows of other
        splits, are ignored.
      label: the key that holds the label's path, such as "depth".
      train: the split to train on.
      test: the split to measure on.

    Raises:
      ValueError: a row is malformed, or a split has no rows.
      OSError: there is no such file.
    """
    folder = os.path.dirname(os.fspath(path))
    pairs: dict[str, list[tuple[str, str]]] = {train: [], test: []}
    for number, row in read_rows(path):
        try:
            image, target, split = (row[key] for key in ("image", label, "split"))
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}: expected a JSON object with the keys image, {label} and "
                f"split ({error!r})"
            ) from error
        if split in pairs:
            pairs[split].append((os.path.join(folder, image), os.path.join(folder, target)))
    for split, rows in pairs.items():
        if not rows:
            raise ValueError(f"{path}: no row has split={split!r}")
    return DenseData(train=tuple(pairs[train]), test=tuple(pairs[test]))


class Legend(NamedTuple):
    """Meaning of the values of a class map.

    Attributes:
      names: of the classes, value 0 first.
      void: the value of unlabelled pixels.
    """

    names: tuple[str, ...]
    void: int


def read_legend(path: str | os.PathLike[str]) -> Legend:
    """Reads `{"names": [...], "void": value}`; void's own name may stand among the names, last.

    Raises:
      ValueError: it is malformed.
      OSError: there is no such file.
    """
    try:
        legend = json.loads(Path(path).read_text(encoding="utf-8"))
        names, void = tuple(map(str, legend["names"])), int(legend["void"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path}: expected a JSON object {{"names": [...], "void": value}} ({error!r})'
        ) from error
    if 0 <= void < len(names) - 1:
        raise ValueError(
            f"{path}: void is {void}, between the {len(names)} classes; expected it after the last"
        )
    return Legend(names[:void] if void == len(names) - 1 else names, void)


def read_class_map(path: str, num_classes: int, void: int = 255) -> Int32[np.ndarray, "H W"]:
    """The class of each pixel; -1 where it is void.

    Args:
      path: an image with one channel, whose values (of a palette: its indices) are classes.
      num_classes: values must be below it.
      void: the value that is no class.

    Raises:
      ValueError: the image has several channels, or a value that is no class.
      OSError: it cannot be read.
    """
    values = _pixels(path)
    if values.ndim != 2:
        raise ValueError(f"{path} has {values.shape[2]} channels; expected one that holds classes")
    values = values.astype(np.int32)
    known = values != void
    if known.any() and not (0 <= values[known].min() and values[known].max() < num_classes):
        raise ValueError(
            f"{path} holds values from {values[known].min()} to {values[known].max()}; expected 0 "
            f"to {num_classes - 1}, and {void} where there is no label"
        )
    return np.where(known, values, VOID)


def read_depth(path: str, unit: float = 1e-3) -> Float32[np.ndarray, "H W"]:
    """The depth of each pixel in metres; 0 where it is unknown.

    Args:
      path: a 16-bit image in which 0 and 65535 mean unknown, or a `.npy` file of metres.
      unit: metres that a level of the image stands for.

    Raises:
      ValueError: it has several channels.
      OSError: it cannot be read.
    """
    if path.endswith(".npy"):
        depth = np.load(io.BytesIO(epath.Path(path).read_bytes()))
    else:
        levels = _pixels(path)
        depth = np.where(levels == 65535, 0, levels) * unit
    if depth.ndim != 2:
        raise ValueError(f"{path} has the shape {depth.shape}; expected [H, W], one depth a pixel")
    return np.where(np.isfinite(depth) & (depth > 0), depth, 0).astype(np.float32)


def relative_depth(depth: Float32[np.ndarray, "H W"]) -> Float32[np.ndarray, "H W"]:
    """Depth from 0.01 for the nearest pixel to 1 for the farthest; 0 stays unknown.

    As Probe3D does for NAVI (arXiv 2404.08636). A range of less than a centimetre is scaled as if
    it were one centimetre.

    Args:
      depth: in metres.
    """
    known = depth > 0
    if not known.any():
        return depth
    near, far = depth[known].min(), depth[known].max()
    return np.where(known, 0.01 + 0.99 * (depth - near) / max(0.01, far - near), 0).astype(
        np.float32
    )


def read_normals(path: str) -> Float32[np.ndarray, "H W 3"]:
    """The unit normal of each pixel's surface; zeros where it is unknown.

    Args:
      path: a `.npy` file of vectors [H, W, 3], or an RGB image in which 0 to 255 mean -1 to 1.
        Vectors whose length is not between 1/2 and 3/2 (black, grey, NaN) are unknown.

    Raises:
      ValueError: it does not have three channels.
      OSError: it cannot be read.
    """
    if path.endswith(".npy"):
        vectors = np.load(io.BytesIO(epath.Path(path).read_bytes())).astype(np.float64)
    else:
        vectors = _pixels(path) / 127.5 - 1
    if vectors.ndim != 3 or vectors.shape[2] != 3:
        raise ValueError(f"{path} has the shape {vectors.shape}; expected [H, W, 3], one normal")
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    known = (length > 0.5) & (length < 1.5)  # false for NaN
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=known).astype(np.float32)


def _pixels(path: str) -> np.ndarray:
    data = io.BytesIO(epath.Path(path).read_bytes())
    try:
        return np.asarray(Image.open(data))
    except OSError as error:  # Pillow does not know the file's name
        raise OSError(f"{path}: the label is no image, or a damaged one ({error})") from error
