"""Image files without their metadata, for those whose pixels are whole and whose metadata is not.

Removed is what no pixel depends on: text, colour profiles, previews, resolutions. Kept is what
says which side is up, where it can be: EXIF and XMP.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_PNG_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
# Three ways to write an orientation; compressed XMP may be of any size and goes.
_PNG_ORIENTATION = b"eXIf", b"iTXtXML:com.adobe.xmp\0\0", b"zTXtRaw profile type exif\0"
_WEBP_PIXELS = {b"VP8X", b"ANIM", b"ANMF", b"ALPH", b"VP8 ", b"VP8L"}
_WEBP_GONE = 0x20 | 0x04  # flags of the colour profile and XMP
# The description of an AVIF item: version, number, protection, and the type to be replaced.
_AVIF_ITEM = re.compile(rb"(infe.{8})(?:Exif|mime)", re.DOTALL)


def without_metadata(data: bytes) -> bytes | None:
    """The file without what is not needed for its pixels; None for formats not known here."""
    if data.startswith(_PNG):
        return _PNG + b"".join(_png_chunks(data))
    if data.startswith(_JPEG):
        return b"".join(_jpeg_segments(data))
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        body = b"WEBP" + b"".join(_webp_chunks(data))
        return b"RIFF" + struct.pack("<I", len(body)) + body
    if data[4:8] == b"ftyp":
        return _AVIF_ITEM.sub(rb"\1free", data)  # an orientation is elsewhere too
    return None


def _png_chunks(data: bytes) -> Iterator[bytes]:
    """Chunks of a PNG: all with pixels, and of those with an orientation the whole ones."""
    start = len(_PNG)
    while start + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, start)
        chunk, start = data[start : start + 12 + length], start + 12 + length
        kind = chunk[4:8]
        if kind in _PNG_PIXELS:
            yield chunk
        elif chunk[4:].startswith(_PNG_ORIENTATION):
            if struct.pack(">I", zlib.crc32(chunk[4:-4])) == chunk[-4:]:
                yield chunk


def _jpeg_segments(data: bytes) -> Iterator[bytes]:
    """Segments of a JPEG up to its first scan, without damaged and needless ones; then the rest."""
    start = 2
    yield data[:start]
    while start + 4 <= len(data):
        marker = data[start + 1]
        (length,) = struct.unpack_from(">H", data, start + 2)
        if data[start] != 0xFF or marker == 0xDA or length < 2:
            break
        segment, start = data[start : start + 2 + length], start + 2 + length
        # JFIF (0xE0) and Adobe (0xEE) say how colours are written, if they are as long as they are.
        if 0xE0 <= marker <= 0xEF or marker == 0xFE:
            if marker != 0xE1 and not (marker in (0xE0, 0xEE) and length >= 14):
                continue
        yield segment
    yield data[start:]


def _webp_chunks(data: bytes) -> Iterator[bytes]:
    """Chunks of a WebP with pixels, and EXIF that is whole."""
    start = 12
    while start + 8 <= len(data):
        kind = data[start : start + 4]
        (length,) = struct.unpack_from("<I", data, start + 4)
        end = start + 8 + length + length % 2
        chunk, start = data[start:end], end
        if kind == b"VP8X" and len(chunk) > 8:
            chunk = chunk[:8] + bytes([chunk[8] & ~_WEBP_GONE]) + chunk[9:]
        if kind in _WEBP_PIXELS or (kind == b"EXIF" and end <= len(data)):
            yield chunk
