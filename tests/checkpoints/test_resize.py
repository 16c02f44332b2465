"""Resized parameters against interpolation by NumPy (positions) and by torch (patches)."""

import numpy as np
import pytest

from siglip2_jax.checkpoints.resize import PATCHES, POSITIONS, is_resizable, resize_param


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def corner_aligned(table: np.ndarray, grid: int) -> np.ndarray:
    """Bilinear interpolation whose first and last samples are the table's, one axis at a time."""
    at = np.linspace(0, len(table) - 1, grid)
    weights = np.stack([np.interp(at, np.arange(len(table)), one) for one in np.eye(len(table))])
    return np.einsum("yi,xj,yxd->ijd", weights, weights, table.astype(np.float64))


@pytest.mark.parametrize("side, grid", [(8, 4), (8, 7), (8, 16), (16, 14), (16, 32), (3, 1)])
def test_positions(side, grid):
    table = numbers(side, side, 5)
    resized = resize_param(POSITIONS, table, (grid, grid, 5))
    assert resized.shape == (grid, grid, 5) and resized.dtype == np.float32
    np.testing.assert_allclose(resized, corner_aligned(table, grid), atol=5e-7)
    np.testing.assert_array_equal(resized[0, 0], table[0, 0])


@pytest.mark.parametrize("side", [8, 15, 16, 27, 32])
def test_no_corner_is_lost(side):
    """Interpolation at rounded coordinates may look just beyond the table."""
    table = np.ones((side, side, 2), np.float32)
    for grid in range(1, 65):
        np.testing.assert_array_equal(resize_param(POSITIONS, table, (grid, grid, 2)), 1)


@pytest.mark.parametrize("path, shape", [(POSITIONS, (8, 8, 5)), (PATCHES, (4 * 4 * 3, 7))])
def test_same_size(path, shape):
    x = numbers(*shape)
    np.testing.assert_allclose(resize_param(path, x, shape), x, rtol=1e-6, atol=1e-7)


@pytest.mark.parity
@pytest.mark.parametrize("old, new", [(4, 8), (14, 16), (8, 16), (4, 7)])
def test_larger_patches_embed_alike(old, new):
    """A patch and the same one enlarged (bilinear, half-pixel centres) have the same embedding."""
    torch = pytest.importorskip("torch")
    kernel, images = numbers(old * old * 3, 6), numbers(9, old, old, 3)
    larger = torch.nn.functional.interpolate(
        torch.from_numpy(images).permute(0, 3, 1, 2), (new, new), mode="bilinear"
    )
    larger = larger.permute(0, 2, 3, 1).reshape(9, -1).numpy()
    resized = resize_param(PATCHES, kernel, (new * new * 3, 6))
    assert resized.shape == (new * new * 3, 6) and resized.dtype == np.float32
    expected = images.reshape(9, -1) @ kernel
    np.testing.assert_allclose(larger @ resized, expected, atol=3e-6 * np.abs(expected).max())


@pytest.mark.parity
def test_smaller_patches_are_least_squares():
    """No kernel of the new size is nearer to the old one's embeddings of random patches."""
    torch = pytest.importorskip("torch")
    old, new = 16, 14
    kernel = numbers(old * old * 3, 2)
    resized = resize_param(PATCHES, kernel, (new * new * 3, 2))
    assert resized.shape == (new * new * 3, 2)
    pixels = torch.eye(old * old, dtype=torch.float64).reshape(-1, 1, old, old)
    smaller = torch.nn.functional.interpolate(pixels, (new, new), mode="bilinear")
    smaller = smaller.reshape(old * old, new * new).numpy()
    for channel in range(3):
        best = np.linalg.lstsq(smaller, kernel[channel::3].astype(np.float64), rcond=None)[0]
        np.testing.assert_allclose(resized[channel::3], best, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "path, have, need",
    [
        ("vision/embed/bias", (8,), (9,)),
        (POSITIONS, (4, 4, 5), (4, 4, 6)),
        (PATCHES, (48, 5), (48, 6)),
        ("text/embed/table", (10, 4), (12, 4)),
    ],
)
def test_other_sizes_are_not_resized(path, have, need):
    assert not is_resizable(path, have, need)
