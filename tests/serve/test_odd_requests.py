"""The odd requests are what their names say, and the same for the same seed."""

from __future__ import annotations

import io

import pytest
from PIL import Image

pytest.importorskip("psutil")
odd = pytest.importorskip("odd_requests")


def test_a_seed_decides_all():
    first, again, other = (list(odd.odd_requests(60, seed)) for seed in (3, 3, 4))
    assert first == again != other


def test_kinds_are_many():
    assert len({case.kind for case in odd.odd_requests(1500)}) > 50


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("one pixel", (1, 1)),
        ("12,000 x 12,000", (12000, 12000)),
        ("12,000 x 1", (12000, 1)),
        ("PNG of 2^31", (2**31 - 1, 2**31 - 1)),
        ("GIF of 65,535", (65535, 65535)),
    ],
)
def test_images_have_the_sizes_that_they_are_named_for(name, size, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with Image.open(io.BytesIO(odd.make_images()[name])) as image:
        assert image.size == size


def test_a_bomb_is_small_and_whole(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    images = odd.make_images()
    assert len(images["PNG bomb"]) < 1e6
    with Image.open(io.BytesIO(images["12,000 x 5,000"])) as image:
        assert image.getpixel((11999, 4999)) == 0
