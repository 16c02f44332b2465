"""Parameters for another resolution or patch size, in NumPy.

Position tables as big_vision's `models/vit.py` does (corner-aligned linear zoom), patch embeddings
by pseudo-inverse resize (FlexiViT, arXiv 2212.08013, section 3.4; big_vision `proj/flexi/vit.py`).
SigLIP 2 uses both for its fixed-resolution stage (arXiv 2502.14786, section 2.4.1).
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from scipy.ndimage import zoom

POSITIONS, PATCHES = "vision/pos/table", "vision/embed/kernel"


def resize_positions(table: Float[np.ndarray, "G G D"], grid: int) -> Float[np.ndarray, "g g D"]:
    """A position table of another side; corners stay where they are."""
    factor = grid / table.shape[0]
    # "nearest", for rounding can put the last corner just outside, where the default is zeros.
    resized = zoom(table, (factor, factor, 1), order=1, mode="nearest")
    return np.asarray(resized).astype(table.dtype)


def resize_patches(kernel: Float[np.ndarray, "P D"], patch_size: int) -> Float[np.ndarray, "p D"]:
    """A patch embedding for another patch size.

    The new kernel gives for a resized patch what the old one gave for the patch (exactly so when
    patches grow, in the least squares sense when they shrink).

    Args:
      kernel: of flattened patches (row, column, channel).
      patch_size: side of the new patches, in pixels.
    """
    old = math.isqrt(kernel.shape[0] // 3)
    resize = np.kron(_linear(old, patch_size), _linear(old, patch_size))  # [p * p, P * P]
    inverse = np.linalg.pinv(resize.T)
    per_channel = kernel.reshape(old * old, -1).astype(np.float64)
    resized = inverse @ per_channel
    return resized.reshape(patch_size**2 * 3, kernel.shape[1]).astype(kernel.dtype)


def is_resizable(path: str, old: tuple[int, ...], new: tuple[int, ...]) -> bool:
    """True for parameters that `resize_param` can give another shape."""
    return path == POSITIONS and old[2:] == new[2:] or path == PATCHES and old[1:] == new[1:]


def resize_param(
    path: str, value: Float[np.ndarray, ...], shape: tuple[int, ...]
) -> Float[np.ndarray, ...]:
    """A position table or patch embedding in another shape, if `is_resizable`."""
    if path == POSITIONS:
        return resize_positions(value, shape[0])
    return resize_patches(value, math.isqrt(shape[0] // 3))


def _linear(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """The matrix of a linear resize at half-pixel centres, without antialiasing."""
    centres = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(0.0, 1.0 - np.abs(centres[:, None] - np.arange(old)))
