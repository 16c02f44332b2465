"""Patches drawn back are the picture they were cut from."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from siglip2_jax.cli.batch_sheet import GRID, batch_sheet, draw_patches, lengths
from siglip2_jax.data.targets import Parsed
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.types import Batch, Patches


def stacked(*figures: np.ndarray, tokens: int) -> Patches:
    preprocess = ImagePreprocessor(patch_size=4, image_size=None)
    return preprocess(figures, tokens)


def test_patches_are_put_back_with_a_grid():
    picture = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    # A budget of exactly its own 2 x 3 patches: nothing is resized.
    patches = stacked(picture, tokens=6)
    drawn = np.asarray(draw_patches(patches.pixels[0], patches.yx[0], patches.valid[0]))
    assert drawn.shape == picture.shape
    lines = np.zeros((8, 12), bool)
    lines[4, :] = lines[:, [4, 8]] = True
    assert (drawn[lines] == GRID).all()
    np.testing.assert_array_equal(drawn[~lines], picture[~lines])


def test_padding_is_not_drawn():
    picture = np.full((8, 8, 3), 255, np.uint8)
    patches = stacked(picture, tokens=5)
    patches.pixels[0][~patches.valid[0]] = np.nan
    drawn = draw_patches(patches.pixels[0], patches.yx[0], patches.valid[0])
    assert drawn.size == (8, 8)


def test_lengths_count_what_is_real():
    image = stacked(np.zeros((8, 8, 3), np.uint8), np.zeros((4, 16, 3), np.uint8), tokens=5)
    text = np.array([[5, 1, 0, 0], [5, 6, 7, 1]], np.int32)
    found = lengths(Batch(image=image, text=text), pad_id=0)
    valid = image.valid.sum() / 2
    assert found == pytest.approx(
        {"patches": valid, "patches_used": valid / 5, "text_tokens": 3, "texts_full": 0.5}
    )


def test_views_are_drawn_and_texts_escaped():
    figures = [np.zeros((8, 8, 3), np.uint8)] * 2
    image = stacked(*figures, tokens=4)
    views = stacked(*figures, *figures, tokens=4)
    local = Patches(*(x.reshape(2, 2, *x.shape[1:]) for x in (views.pixels, views.yx, views.valid)))
    batch = Batch(image=image, text=np.ones((2, 4), np.int32), fields={"local": local, "n": text()})
    page = batch_sheet({4: batch}, {4: ["<script>", "b"]}, 0, "<title>")
    assert page.count("<img") == 2 * (1 + 2)
    assert "<script>" not in page and "&lt;script&gt;" in page and "2 x 2 patches" in page


def test_boxes_of_targets_are_drawn():
    batch = Batch(image=stacked(np.zeros((64, 128, 3), np.uint8), tokens=512), text=text()[None])
    targets = Parsed("refer", "a <dog>", (0.25, 0.5, 0.75, 1.0)), Parsed(None, "", None)
    page = batch_sheet({512: batch}, {512: ["x"]}, 0, "title", {512: [targets]})
    assert "<br>refer: a &lt;dog&gt; [0.250 0.500 0.750 1.000]" in page and "None" not in page
    data = re.search('base64,([^"]*)', page)[1]
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), np.int32)
    assert drawn.shape == (64, 128, 3)
    rows, columns = np.nonzero(drawn[:, :, 1] - drawn[:, :, 0] > 60)  # green, not the red grid
    box = [rows.min(), columns.min(), rows.max(), columns.max()]
    np.testing.assert_allclose(box, [16, 64, 47, 127], atol=2)


def text() -> np.ndarray:
    return np.zeros(2, np.int32)
