"""Crops of protocols, against slices and against the official resize and crop."""

import io

import numpy as np
import pytest
from PIL import Image

from siglip2_jax.data.sources import Memory
from siglip2_jax.evals.crops import CENTRE, cut_border, cut_centre
from siglip2_jax.evals.fewshot import FewShot
from siglip2_jax.evals.zero_shot import ZeroShot
from siglip2_jax.preprocess.decode import decode


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def test_border_is_cut_on_all_sides():
    pixels = noise(9, 6)
    np.testing.assert_array_equal(np.asarray(cut_border(pixels, 2)), pixels[2:-2, 2:-2])
    assert cut_border(pixels, 3) is pixels  # nothing would be left
    assert cut_border(b"no image", 2) == b"no image"
    assert cut_border(pixels, 0) is pixels


def test_centre_is_a_share_of_each_side():
    pixels = noise(64, 160)
    np.testing.assert_array_equal(np.asarray(cut_centre(pixels, CENTRE)), pixels[4:-4, 10:-10])
    assert cut_centre(pixels, 1.0) is pixels
    assert cut_centre(b"no image", 0.5) == b"no image"
    assert np.asarray(cut_centre(noise(1, 3), 0.01)).shape == (1, 1, 3)


@pytest.mark.parametrize(("height", "width"), [(480, 640), (333, 500)])
def test_centre_is_what_the_official_crop_keeps(height, width):
    """`resize(256)|central_crop(224)` of big_vision on a smooth image, to half a pixel of it."""
    y, x = np.mgrid[:height, :width] / [[[height]], [[width]]]
    pixels = np.stack([255 * y, 255 * x, 128 + 0 * x], -1).astype(np.uint8)
    whole = Image.fromarray(pixels).resize((256, 256), Image.Resampling.BILINEAR)
    official = np.asarray(whole)[16:-16, 16:-16].astype(int)
    resized = cut_centre(pixels, CENTRE).resize((224, 224), Image.Resampling.BILINEAR)
    step = 255 / min(height, width)  # of brightness, from one pixel to the next
    assert np.abs(np.asarray(resized) - official).max() <= np.ceil(1 + step / 2)


def test_an_image_is_turned_upright_after_the_cut():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = io.BytesIO()
    Image.fromarray(noise(40, 24)).save(data, "PNG", exif=exif)
    whole = np.asarray(decode(data.getvalue()))
    assert whole.shape == (24, 40, 3)
    border, centre = cut_border(data.getvalue(), 2), cut_centre(data.getvalue(), 0.75)
    np.testing.assert_array_equal(np.asarray(decode(border)), whole[2:-2, 2:-2])
    np.testing.assert_array_equal(np.asarray(decode(centre)), whole[3:-3, 5:-5])


def test_shares_are_checked():
    source = Memory(({"image": b"", "captions": ("a",), "name": "0"},))
    with pytest.raises(ValueError, match="ZeroShot.crop is 1.1; expected a share above 0"):
        ZeroShot(source=source, crop=1.1)
    with pytest.raises(ValueError, match="FewShot.crop is 0.0; expected a share above 0"):
        FewShot(train=source, test=source, label="x", crop=0.0)
