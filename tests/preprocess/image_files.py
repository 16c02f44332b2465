"""Image files made for tests, and the colours that they should have."""

import io
import struct
import zlib

import numpy as np
from PIL import ExifTags, Image


def picture(height: int = 48, width: int = 64) -> Image.Image:
    y, x = np.mgrid[:height, :width] / [[[height]], [[width]]]
    return Image.fromarray((np.stack([x, y, (x + y) / 2], -1) * 200 + 30).astype(np.uint8))


def encoded(image: Image.Image, file_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def tagged(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def chunk(kind: bytes, body: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body)) + kind + body + check


def png(
    width: int, height: int, depth: int, colour: int, data: bytes, trns: bytes = b"", *more: bytes
) -> bytes:
    """A PNG of unpacked rows, each after its filter's number; more chunks go before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [
        chunk(b"IHDR", header),
        *more,
        chunk(b"IDAT", zlib.compress(data)),
        chunk(b"IEND", b""),
    ]
    if trns:
        parts.insert(1 + len(more), chunk(b"tRNS", trns))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    colour, alpha = colour.astype(int), alpha.astype(int)[..., None]
    return (2 * (colour * alpha + 255 * (255 - alpha)) + 255) // 510  # rounded to the nearest
