"""Small copies of images, to be put into pages."""

from __future__ import annotations

import base64
import io

from PIL import Image


def thumbnail(image: Image.Image, side: int) -> Image.Image:
    """A copy in RGB whose sides are at most `side` pixels; smaller images keep their size."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    return small


def data_uri(image: Image.Image) -> str:
    """An image as a JPEG within the page."""
    data = io.BytesIO()
    image.save(data, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
