"""Decoding at a fraction of the size: never below what is needed, and only where asked for."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from siglip2_jax.demo import shipped_examples
from siglip2_jax.preprocess.decode import ImageError, decode
from siglip2_jax.preprocess.resize import resize_antialias


def encoded(width: int, height: int, kind: str = "JPEG", **options) -> bytes:
    colours = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    stream = io.BytesIO()
    image = Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)
    image.save(stream, kind, **options)
    return stream.getvalue()


def scaled(data, height: int, width: int, **options) -> Image.Image:
    return decode(data, least_size=lambda size: (height, width), **options)


@pytest.mark.parametrize(("width", "height"), [(240, 160), (241, 163), (97, 255), (8, 9)])
def test_the_smallest_that_is_large_enough(width, height):
    data = encoded(width, height)
    for need_height in (1, height // 8, height // 4 + 1, height // 2, height, 2 * height):
        for need_width in (1, width // 8, width // 5, width // 2 + 1, width):
            need = max(1, need_height), max(1, need_width)
            fitting = [s for s in (2, 4, 8) if height // s >= need[0] and width // s >= need[1]]
            scale = max(fitting, default=1)
            assert scaled(data, *need).size == (-(-width // scale), -(-height // scale))


def test_the_function_is_given_the_stored_height_and_width():
    seen = []
    decode(encoded(60, 40), least_size=lambda size: seen.append(size) or (1, 1))
    assert seen == [(40, 60)]


def test_turned_upright_after_scaling():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(64, 32, exif=exif.tobytes())
    small = scaled(data, 16, 32)
    assert decode(data).size == (32, 64) and small.size == (16, 32)
    pillow = Image.open(io.BytesIO(data))
    pillow.draft("RGB", (32, 16))
    np.testing.assert_array_equal(small, ImageOps.exif_transpose(pillow))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "GIF"])
def test_other_formats_are_decoded_in_full(kind):
    data = encoded(64, 48, kind)
    np.testing.assert_array_equal(scaled(data, 1, 1), decode(data))


def test_images_of_the_caller_are_left_alone():
    image = Image.open(io.BytesIO(encoded(64, 48)))
    assert scaled(image, 1, 1).size == image.size == (64, 48)
    array = np.zeros((48, 64, 3), np.uint8)
    assert scaled(array, 1, 1).size == (64, 48)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_modes(mode):
    colours = np.full((64, 64, len(Image.new(mode, (1, 1)).getbands())), 90, np.uint8)
    stream = io.BytesIO()
    Image.fromarray(colours.squeeze(), mode=None if mode == "L" else mode).save(stream, "JPEG")
    small, full = scaled(stream.getvalue(), 8, 8), decode(stream.getvalue())
    assert small.mode == "RGB" and small.size == (8, 8)
    np.testing.assert_array_equal(small, np.asarray(full)[:8, :8])


def test_bad_files_are_refused_as_before():
    data = encoded(64, 48)
    with pytest.raises(ImageError, match=r"48 x 64 .* is more than max_pixels=2,000"):
        scaled(data, 1, 1, max_pixels=2000)
    with pytest.raises(ImageError, match="JPEG data is damaged or truncated"):
        scaled(data[: len(data) // 2], 1, 1)


@pytest.mark.parametrize(("scale", "mean", "worst"), [(2, 1.5, 4.2), (4, 2.3, 7.5)])
def test_near_a_full_decode(scale, mean, worst):
    """Distance in grey levels at the least margin that training uses, on sharp images."""
    found, shifts = [], []
    for item in shipped_examples()[:40]:
        full = decode(item.image)
        height, width = full.height // scale, full.width // scale
        small = scaled(item.image, height, width)
        size = round(height / 1.5), round(width / 1.5)
        pixels = (resize_antialias(np.asarray(image), size) for image in (full, small))
        difference = np.subtract(*pixels)
        shifts.append(difference.mean())
        found.append(abs(difference).mean())
    assert 0 < np.mean(found) < mean and max(found) < worst
    assert abs(np.mean(shifts)) < 0.1  # neither brighter nor darker
