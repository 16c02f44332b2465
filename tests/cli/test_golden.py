"""The drawings and numbers that the released NaFlex checkpoints are verified with.

Sizes, colours and grids are restated from transformers' public `convert_siglip2_to_hf.py`.
"""

import re

import numpy as np
import pytest

from siglip2_jax.cli.golden import IMAGE_SIZES, LOGITS, TEXTS, draw
from siglip2_jax.models.config import RELEASES
from siglip2_jax.preprocess.image import ImagePreprocessor

RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 128, 0)


@pytest.mark.parametrize(
    ("size", "radius", "outline", "grid"),
    [
        ((224, 224), 98, 11, (16, 16)),
        ((1024, 1024), 448, 51, (16, 16)),
        ((1024, 224), 98, 51, (7, 32)),
    ],
)
def test_drawings(size, radius, outline, grid):
    width, height = size
    image = draw(width, height)
    assert image.mode == "RGB" and image.size == size and size in IMAGE_SIZES
    pixels = np.asarray(image)
    row, centre = pixels[height // 2], width // 2
    # From the centre outwards: blue, the outline, which lies inside the circle, red.
    expected = [BLUE] * (radius - outline) + [GREEN] * outline + [RED] * (centre - radius)
    for line in (row[centre + 1 :], row[:centre][::-1]):
        found = [tuple(map(int, pixel)) for pixel in line]
        edges = [[i for i, c in enumerate(x) if c == GREEN] for x in (found, expected[: len(line)])]
        assert set(found) == {RED, GREEN, BLUE}
        assert abs(edges[0][0] - edges[1][0]) <= 1 and abs(edges[0][-1] - edges[1][-1]) <= 1
    naflex = ImagePreprocessor(patch_size=16, image_size=None, mode="hf")
    assert naflex.grid((height, width), 256) == grid
    assert naflex.to_patches(image, 256)[1] == grid


def test_logits_belong_to_releases():
    names = {v.name for v in RELEASES if v.config.native_resolution}
    assert set(LOGITS) == names
    for rows in LOGITS.values():
        assert np.shape(rows) == (len(TEXTS), len(IMAGE_SIZES)) == (7, 3)
    assert all(re.fullmatch("[a-z ]+", text) for text in TEXTS)


def test_logits_are_the_published_ones(shared):
    """The table in the reference notes, number by number."""
    notes = (shared / "reference" / "pitfalls.md").read_text(encoding="utf-8")
    for i, text in enumerate(TEXTS):
        row = re.search(rf"^\| {text} \|(.*)\|$", notes, re.MULTILINE)
        numbers = [float(cell) for cell in row[1].split("|")]
        assert numbers == [*LOGITS["B/16 NaFlex"][i], *LOGITS["So400m/16 NaFlex"][i]]
