import io
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from oracles import Oracle
from PIL import Image

from siglip2_jax.preprocess.decode import ImageError, decode
from siglip2_jax.preprocess.image import ImagePreprocessor, target_size
from siglip2_jax.preprocess.patches import pad_and_stack, patchify

NATIVE = ImagePreprocessor(patch_size=16, image_size=None)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height + width).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("size", "budget", "expected"),
    [
        ((1, 1), 256, (112, 112)),  # the scale stops at 100
        ((1, 4000), 256, (16, 4096)),
        ((4000, 1), 256, (4096, 16)),
        ((2200, 1700), 256, (288, 224)),
        ((256, 256), 256, (256, 256)),
        ((512, 512), 1, (16, 16)),
    ],
)
def test_target_size(size: tuple[int, int], budget: int, expected: tuple[int, int]) -> None:
    assert target_size(size, 16, budget) == expected


def test_target_size_properties() -> None:
    rng = random.Random(0)
    for _ in range(1500):
        size = tuple(int(2 ** rng.uniform(0, 14)) for _ in range(2))
        patch, budget = rng.choice([14, 16, 32]), rng.choice([1, 2, 7, 128, 256, 576, 784, 1024])
        height, width = target_size(size, patch, budget)
        rows, cols = height // patch, width // patch
        assert (height % patch, width % patch) == (0, 0) and rows >= 1 and cols >= 1
        assert rows * cols <= budget
        assert target_size(size[::-1], patch, budget) == (width, height)
        # Some common scale must round up to this grid: that is all the distortion there is. The
        # search stops within 1e-5 of the largest.
        lowest = max((rows - 1) * patch / size[0], (cols - 1) * patch / size[1])
        highest = min(rows * patch / size[0], cols * patch / size[1])
        assert lowest < highest
        larger_rows, larger_cols = (
            max(1, int(np.ceil(side * (highest + 2e-5) / patch))) for side in size
        )
        assert highest > 99.9 or larger_rows * larger_cols > budget


def test_patchify_round_trip_and_order() -> None:
    image = noise(32, 48)
    patches = patchify(image, 16)
    assert patches.shape == (6, 768) and patches.dtype == np.uint8
    np.testing.assert_array_equal(patches[4], image[16:32, 16:32].ravel())
    back = patches.reshape(2, 3, 16, 16, 3).swapaxes(1, 2).reshape(32, 48, 3)
    np.testing.assert_array_equal(back, image)


def test_patchify_drops_what_fills_no_patch() -> None:
    image = noise(384, 384).astype(np.float32)
    patches = patchify(image, 14)
    assert patches.shape == (27 * 27, 14 * 14 * 3)
    np.testing.assert_array_equal(patches, patchify(image[:378, :378], 14))


@pytest.mark.parametrize(
    "preprocessor",
    [
        NATIVE,
        ImagePreprocessor(16, None, "hf"),
        ImagePreprocessor(16, 224),
        ImagePreprocessor(14, 384, "hf", "bicubic"),
    ],
)
@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (37, 91), (300, 200)])
def test_shapes_range_and_grid(preprocessor: ImagePreprocessor, size: tuple[int, int]) -> None:
    image = noise(*size)
    pixels, grid = preprocessor.to_patches(preprocessor.open(image), 256)
    assert pixels.dtype == np.float32 and -1 <= pixels.min() and pixels.max() <= 1
    assert pixels.shape == (grid[0] * grid[1], preprocessor.patch_size**2 * 3)
    assert grid == preprocessor.grid(size, 256)
    length = preprocessor.num_tokens(256)
    assert len(pixels) == length or (preprocessor.image_size is None and len(pixels) < length)
    for level, expected in ((0, -1), (255, 1)):
        flat, _ = preprocessor.to_patches(preprocessor.open(np.full_like(image, level)), 256)
        np.testing.assert_allclose(flat, expected, atol=1e-6)


def test_orientation_reaches_the_grid() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(noise(100, 200)).save(buffer, "JPEG", exif=exif)
    assert NATIVE.to_patches(NATIVE.open(buffer.getvalue()))[1] == NATIVE.grid((200, 100))
    kept = ImagePreprocessor(16, None, exif=False)
    assert kept.to_patches(kept.open(buffer.getvalue()))[1] == NATIVE.grid((100, 200))


def test_pad_and_stack() -> None:
    items = [NATIVE.to_patches(NATIVE.open(noise(*size)), 64) for size in ((50, 90), (40, 40))]
    patches = pad_and_stack(items, 64)
    pixels, yx, valid = patches.pixels, patches.yx, patches.valid
    assert (pixels.shape, yx.shape, valid.shape) == ((2, 64, 768), (2, 64, 2), (2, 64))
    assert (pixels.dtype, yx.dtype, valid.dtype) == (np.float32, np.int32, np.bool_)
    for i, (cut, (rows, cols)) in enumerate(items):
        count = rows * cols
        np.testing.assert_array_equal(pixels[i, :count], cut)
        assert yx[i, :count].tolist() == [[y, x] for y in range(rows) for x in range(cols)]
        assert valid[i].tolist() == [True] * count + [False] * (64 - count)
        assert not pixels[i, count:].any() and not yx[i, count:].any()


def test_errors_are_sentences() -> None:
    items = [NATIVE.to_patches(NATIVE.open(noise(50, 90)), 64)]
    with pytest.raises(ValueError, match=r"^Image 0 of the batch has 60 patches \(6 x 10\), more"):
        pad_and_stack(items, 32)
    with pytest.raises(ValueError, match="at least one image"):
        pad_and_stack([], 32)
    for budget in (0, -3):
        with pytest.raises(ValueError, match="max_num_patches must be at least 1"):
            NATIVE.to_patches(NATIVE.open(noise(4, 4)), budget)
    with pytest.raises(ValueError, match="must be at least 1, got 0 x 5"):
        target_size((0, 5), 16, 256)
    with pytest.raises(ValueError, match="patch_size must"):
        ImagePreprocessor(0, None)
    with pytest.raises(ValueError, match="image_size must"):
        ImagePreprocessor(16, 8)
    # The suite's type checker may be faster than the class itself.
    for field, arguments in (("mode", ["other"]), ("resample", ["hf", "nearest"])):
        with pytest.raises((ValueError, TypeError), match=field):
            ImagePreprocessor(16, None, *arguments)
    with pytest.raises(ImageError, match="^photo 3: .*max_pixels=10"):
        preprocess = ImagePreprocessor(16, None, max_pixels=10)
        preprocess.to_patches(preprocess.open(noise(4, 4), "photo 3"))


def test_explain() -> None:
    text = NATIVE.explain((2200, 1700), 256)
    assert "2200 x 1700" in text and "(height x width)" in text and "288 x 224" in text
    assert "18 x 14 = 252 patches" in text and "trained" not in text
    assert "trained with at most 1024" in NATIVE.explain((2200, 1700), 2048)
    assert "27 x 27" in ImagePreprocessor(14, 384).explain((10, 20), 2048)


def test_threads_agree_with_one() -> None:
    images = [noise(100 + 7 * i, 160) for i in range(12)]
    expected = [NATIVE.to_patches(NATIVE.open(image))[0] for image in images]
    with ThreadPoolExecutor(4) as pool:
        for result, (pixels, _) in zip(
            expected, pool.map(lambda x: NATIVE.to_patches(NATIVE.open(x)), images), strict=True
        ):
            np.testing.assert_array_equal(pixels, result)


@pytest.mark.slow
def test_large_photo() -> None:
    ramp = np.tile((np.arange(12_000) // 47).astype(np.uint8), (9_000, 1))
    buffer = io.BytesIO()
    Image.fromarray(ramp).convert("RGB").save(buffer, "JPEG", quality=95)
    pixels, (rows, cols) = NATIVE.to_patches(NATIVE.open(buffer.getvalue()), 256)
    assert (rows, cols) == NATIVE.grid((9_000, 12_000), 256)
    columns = pixels.reshape(rows, cols, 16, 16, 3)[0, :, 0, :, 0].ravel()
    assert np.all(np.diff(columns) > 0)


def test_target_size_is_the_official_one(golden: Oracle) -> None:
    with np.load(golden.folder / "sizes.npz") as file:
        rows = file["sizes"].tolist()
    assert len(rows) > 1000
    for *size, patch, budget, height, width in rows:
        assert target_size(tuple(size), patch, budget) == (height, width)


def test_native_matches_the_official_pipeline(oracle: Oracle) -> None:
    expected = oracle.expected("naflex")
    budgets = [int(key.removeprefix("naflex").split("/")[0]) for key in expected if "grid" in key]
    for budget in budgets:
        for i, image in enumerate(oracle.images("naflex")):
            pixels, grid = NATIVE.to_patches(NATIVE.open(image), budget)
            assert grid == tuple(expected[f"naflex{budget}/grid_hw"][i])
            rounded = expected[f"naflex{budget}/patches_u8"][i, : len(pixels)] / 127.5 - 1
            assert np.abs(pixels - rounded).max() <= 0.5 / 127.5 + 1e-6
            if i == 0:
                exact = expected[f"naflex{budget}/patches_first"][: len(pixels)]
                assert np.abs(pixels - exact).max() <= 2e-6


def test_fixed_equals_the_official_pipeline(oracle: Oracle) -> None:
    patch, expected = oracle.config("fixed")["patch"], oracle.expected("fixed")["pixels_u8"]
    preprocessor = ImagePreprocessor(patch, expected.shape[1])
    for image, levels in zip(oracle.images("fixed"), expected, strict=True):
        pixels, _ = preprocessor.to_patches(preprocessor.open(image))
        reference = patchify(levels, patch).astype(np.float32) / np.float32(127.5) - 1
        np.testing.assert_array_equal(pixels, reference)


def test_decoding_upright_first_equals_decoding_here(shared: Path) -> None:
    path = shared / "data/exif_orientation/Landscape_6.jpg"
    pixels, grid = NATIVE.to_patches(NATIVE.open(path))
    assert grid == NATIVE.grid((1200, 1800))
    np.testing.assert_array_equal(NATIVE.to_patches(NATIVE.open(decode(path)))[0], pixels)


def test_a_call_pads_and_stacks() -> None:
    images = [noise(50, 90), noise(40, 40)]
    patches = NATIVE(images, 64)
    expected = pad_and_stack([NATIVE.to_patches(NATIVE.open(image), 64) for image in images], 64)
    for name in ("pixels", "yx", "valid"):
        np.testing.assert_array_equal(getattr(patches, name), getattr(expected, name))
    single = NATIVE(images[0], 64)
    np.testing.assert_array_equal(single.pixels, patches.pixels[:1])
    assert ImagePreprocessor(16, 32)(images).pixels.shape == (2, 4, 768)
    with pytest.raises(ValueError, match="at least one image"):
        NATIVE([])
