import numpy as np
import pytest
from PIL import Image

from siglip2_jax.preprocess.resize import resize_antialias, resize_no_antialias, resize_pillow

SHAPES = [  # from, to
    ((48, 64), (32, 48)),
    ((64, 48), (224, 304)),
    ((480, 640), (224, 288)),
    ((97, 331), (81, 17)),
    ((1, 1), (112, 112)),
    ((1, 400), (16, 256)),
    ((400, 1), (256, 16)),
    ((3, 5), (1, 1)),
    ((50, 70), (50, 70)),
    ((1200, 20), (13, 21)),
]


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height + width).integers(0, 256, (height, width, 3), np.uint8)


def triangle(size: int, out_size: int) -> np.ndarray:
    """The antialiased filter by its definition, as a dense float64 matrix."""
    scale = size / out_size
    centres = (np.arange(out_size)[:, None] + 0.5) * scale
    weights = np.maximum(0, 1 - np.abs(np.arange(size) + 0.5 - centres) / max(1, scale))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_antialias_is_its_formula(shape: tuple[int, int], size: tuple[int, int]) -> None:
    image = noise(*shape)
    result = resize_antialias(image, size)
    assert result.dtype == np.float32
    down, across = triangle(shape[0], size[0]), triangle(shape[1], size[1])
    expected = np.einsum("hH,HWc,wW->hwc", down, image.astype(float), across, optimize=True)
    # Weights are computed in float32, as the official pipeline does.
    np.testing.assert_allclose(result, expected, atol=0.02, rtol=0)


def test_antialias_keeps_the_range_and_takes_any_layout() -> None:
    for level in (0, 1, 254, 255):
        result = resize_antialias(np.full((301, 203, 3), level, np.uint8), (48, 80))
        np.testing.assert_allclose(result, level, atol=1e-4)
        assert 0 <= result.min() and result.max() <= 255
    image = noise(40, 60)
    flipped = resize_antialias(image[::-1, ::-1], (16, 32))
    np.testing.assert_allclose(flipped[::-1, ::-1], resize_antialias(image, (16, 32)), atol=0.02)


@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_no_antialias_is_its_formula(shape: tuple[int, int], size: tuple[int, int]) -> None:
    image = noise(*shape).astype(np.float32)

    def neighbours(i: int, axis: int) -> tuple[int, int, np.float32]:
        scale = np.float32(shape[axis]) / np.float32(size[axis])
        centre = (np.float32(i) + np.float32(0.5)) * scale - np.float32(0.5)
        first = int(np.floor(centre))
        last = min(int(np.ceil(centre)), shape[axis] - 1)
        return max(first, 0), last, centre - np.float32(first)

    result = resize_no_antialias(noise(*shape), size)
    assert result.dtype == np.uint8 and result.shape == (*size, 3)
    for i in np.linspace(0, size[0] - 1, 9, dtype=int):
        for j in np.linspace(0, size[1] - 1, 9, dtype=int):
            (top, bottom, down), (left, right, across) = neighbours(i, 0), neighbours(j, 1)
            upper = image[top, left] + (image[top, right] - image[top, left]) * across
            lower = image[bottom, left] + (image[bottom, right] - image[bottom, left]) * across
            expected = np.trunc(upper + (lower - upper) * down)
            np.testing.assert_array_equal(result[i, j], expected)


def test_no_antialias_truncates() -> None:
    image = np.zeros((1, 2, 3), np.uint8)
    image[0, 1] = 255
    assert resize_no_antialias(image, (1, 3))[0, :, 0].tolist() == [0, 127, 255]  # 127.5


def test_pillow() -> None:
    image = Image.fromarray(noise(40, 60))
    for name, resample in (("bilinear", Image.BILINEAR), ("bicubic", Image.BICUBIC)):
        expected = np.asarray(image.resize((32, 16), resample))
        np.testing.assert_array_equal(resize_pillow(image, (16, 32), name), expected)


def test_empty_results_are_refused() -> None:
    for resize in (resize_antialias, resize_no_antialias):
        with pytest.raises(ValueError, match="cannot be resized to 0 x 16 pixels"):
            resize(noise(4, 4), (0, 16))


def test_large_image() -> None:
    image = np.broadcast_to(
        np.arange(9_000, dtype=np.uint16)[:, None, None] // 36, (9_000, 12_000, 3)
    )
    result = resize_antialias(image.astype(np.uint8), (224, 288))
    np.testing.assert_allclose(
        result[:, 0, 0], (np.arange(224) + 0.5) * 9000 / 224 / 36 - 0.5, atol=0.6
    )
    assert np.ptp(result, axis=1).max() < 1e-3
