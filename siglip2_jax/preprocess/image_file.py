"""Image files to loaded Pillow images: formats, damage, transparency as the files mean it."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import (  # the plugins register themselves in Image.OPEN
    AvifImagePlugin,  # noqa: F401
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    ImageFile,
    Jpeg2KImagePlugin,  # noqa: F401
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

from siglip2_jax import git_lfs
from siglip2_jax.errors import reason_of
from siglip2_jax.preprocess.metadata import without_metadata

Stream = io.BytesIO | io.BufferedReader

# From the height and width of an image as it is stored to the least that is needed of both.
LeastSize = Callable[[tuple[int, int]], tuple[int, int]]

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM")
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_GREY_TOP = {"L;2": 3, "L;4": 15, "L": 255}  # the largest sample of a PNG, by Pillow's name
_PREFIX = 64  # bytes that tell a format: the brands of AVIF and HEIC are a list


class ImageError(ValueError):
    """An image that cannot be read: one sentence with the item, what was found and a way out."""


class _DamagedError(ImageError):
    """Error for an image of a known format that its reader cannot decode."""

    def __init__(self, label: str, format_name: str | None, error: Exception) -> None:
        reason = reason_of(error)
        super().__init__(
            f"{label}: the {format_name or 'image'} data is damaged or truncated ({reason})."
        )


def damage_of(label: str, format_name: str | None, error: Exception) -> Exception:
    """The error of damaged data; but an error of the system, which has a number, as it is."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    return _DamagedError(label, format_name, error)


def read_image(
    stream: Stream, label: str, max_pixels: int, least_size: LeastSize | None = None
) -> Image.Image:
    """The image in a file, loaded. One that cannot be read is tried again without its metadata.

    Args:
      stream: the file.
      label: its name, for errors.
      max_pixels: the largest accepted width * height, checked before pixels are decoded.
      least_size: as for `decode`.

    Raises:
      ImageError: the file is empty, of no known format, too large, or its pixels are damaged.
      OSError: the file cannot be read.
    """
    try:
        return _read(stream, label, max_pixels, least_size)
    except _DamagedError:
        stream.seek(0)
        pixels_only = without_metadata(stream.read())
        if pixels_only is None:
            raise
        try:
            return _read(io.BytesIO(pixels_only), label, max_pixels, least_size)
        except ImageError:
            pass
        raise


def load(image: Image.Image, label: str, max_pixels: int) -> None:
    """Decodes the pixels of an image that may not be loaded yet.

    Raises:
      ImageError: it has no pixels, too many, or damaged ones.
      OSError: its file cannot be read.
    """
    _check_size(image, label, max_pixels)
    try:
        image.load()
    except Exception as error:  # whatever a plugin trips over in damaged data
        raise damage_of(label, image.format, error) from error


def _check_size(image: Image.Image, label: str, max_pixels: int) -> None:
    width, height = image.size
    if not width * height:
        raise ImageError(f"{label}: the image has no pixels ({height} x {width}, height x width).")
    if width * height > max_pixels:
        raise ImageError(
            f"{label}: {height} x {width} (height x width) is more than max_pixels={max_pixels:,}; "
            "shrink the image, or raise max_pixels if you trust it."
        )


def _read(stream: Stream, label: str, max_pixels: int, least_size: LeastSize | None) -> Image.Image:
    image = _identify(stream, label)
    _check_size(image, label, max_pixels)  # as it is stored
    if least_size is not None and image.format == "JPEG":  # HEIC would give its thumbnail
        width, height = image.size
        least_height, least_width = least_size((height, width))
        image.draft(None, (least_width, least_height))
    rawmode = image.tile[0].args if image.format == "PNG" and image.tile else None
    load(image, label, max_pixels)
    if image.format == "PNG" and "transparency" in image.info:
        _make_transparent(image, stream, rawmode)
    return image


def _make_transparent(image: Image.Image, stream: Stream, rawmode: Any) -> None:
    """Converts a PNG's transparent colour from the samples of the file to the loaded pixels."""
    colour = image.info["transparency"]
    if rawmode in _GREY_TOP:
        top = _GREY_TOP[rawmode]
        image.info["transparency"] = (colour & top) * (255 // top)
    elif rawmode == "RGB":
        image.info["transparency"] = tuple(sample & 255 for sample in colour)
    elif rawmode == "RGB;16B":
        image.putalpha(_wide_alpha(image, stream, colour))


def _wide_alpha(
    image: Image.Image, stream: Stream, transparent: tuple[int, int, int]
) -> Image.Image:
    """Alpha of a PNG whose one transparent colour has 16 bits, of which pixels keep the upper 8."""
    stream.seek(0)
    low_bytes = PngImagePlugin.PngImageFile(stream)
    low_bytes.tile = [low_bytes.tile[0]._replace(args="RGB;16L")]
    high, low = (np.asarray(x, np.uint16) for x in (image, low_bytes))
    opaque = (high << 8 | low != np.array(transparent, np.uint16)).any(-1)
    return Image.fromarray(opaque.astype(np.uint8) * 255)


def _identify(stream: Stream, label: str) -> ImageFile.ImageFile:
    """Reads the header only.

    `PIL.Image.open` does the same, but also warns above 89 megapixels and refuses above 179, by a
    limit that is global to the process. Ours is `max_pixels`, so the plugins are asked directly.
    """
    prefix = stream.read(_PREFIX)
    stream.seek(0)
    if not prefix:
        raise ImageError(f"{label}: there is nothing in it (zero bytes); expected an image file.")
    if git_lfs.is_pointer(prefix):
        raise ImageError(f"{label}: it is {git_lfs.POINTER}.")
    try:
        for format_name in ("HEIF", *_FORMATS):
            if (image := _open(stream, label, format_name, prefix)) is not None:
                return image
    except ImageError:
        raise
    except Exception as error:  # whatever a plugin trips over in damaged data
        raise damage_of(label, format_name, error) from error
    raise ImageError(
        f"{label}: not an image file (it starts with {prefix[:16]!r}); expected one of "
        f"{', '.join(_FORMATS)} or HEIC, or open it with Pillow and pass the image."
    )


def _open(
    stream: Stream, label: str, format_name: str, prefix: bytes
) -> ImageFile.ImageFile | None:
    """The image, if the file is of the format."""
    if format_name == "HEIF":
        return _heif_reader(label)(stream, "") if _is_heif(prefix) else None
    reader, accept = Image.OPEN[format_name]
    # Plugins answer with a string, the reason, where Pillow was built without the format.
    answer = accept(prefix[:16].ljust(16, b"\0")) if accept else False
    if isinstance(answer, str):
        raise ImageError(f"{label}: {answer}.")
    return reader(stream, "") if answer else None


def _is_heif(prefix: bytes) -> bool:
    """True for HEIC, what phones write; AVIF files have the same container and other brands."""
    if prefix[4:8] != b"ftyp":
        return False
    brands = prefix[8 : int.from_bytes(prefix[:4])]
    return any(brands[i : i + 4] in _HEIF_BRANDS for i in range(0, len(brands), 4))


def _heif_reader(label: str) -> type[ImageFile.ImageFile]:
    try:
        from pillow_heif import HeifImageFile  # an extra
    except ImportError as error:
        raise ImageError(
            f"{label}: reading HEIC needs an extra, pip install 'siglip2_jax[heic]'."
        ) from error
    return HeifImageFile
