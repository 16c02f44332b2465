"""Decodes anything that holds one image (a file, bytes, an array, …) to a Pillow RGB image."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image

from siglip2_jax.preprocess.image_file import (
    ImageError,
    LeastSize,
    Stream,
    damage_of,
    load,
    read_image,
)

MAX_PIXELS = 200_000_000

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class NamedImage:
    """An image with the name it has elsewhere, for errors: bytes out of an archive have none.

    Attributes:
      image: the image.
      name: what to call it.
    """

    image: str | os.PathLike | bytes | Image.Image | np.ndarray
    name: str


ImageSource = str | os.PathLike | bytes | Image.Image | np.ndarray | NamedImage


def as_images(images: ImageSource | Iterable[ImageSource]) -> Iterable[ImageSource]:
    """Several images as they are; one image as a list of one."""
    single = isinstance(images, str | os.PathLike | bytes | Image.Image | np.ndarray | NamedImage)
    return [images] if single else images


def decode(
    source: ImageSource,
    *,
    exif: bool = True,
    max_pixels: int = MAX_PIXELS,
    name: str | None = None,
    least_size: LeastSize | None = None,
) -> Image.Image:
    """Decodes one image to RGB, 8 bits a channel.

    Transparency of any kind is composited over white: `(c * a + 255 * (255 - a)) / 255`, rounded
    to the nearest integer. 16-bit grey becomes `value / 257`, rounded; 16-bit colour, and grey with
    alpha, keep their high bytes, as Pillow reads them. Mode "I" is read as 16-bit, unless no value
    exceeds 255: then values are grey levels. Mode "F" holds grey levels 0..255, unless no value
    exceeds 1: then 1 is white. Values outside those ranges are refused. LAB is converted to sRGB.
    Animations give their first frame. A file whose pixels are whole is read even where its
    metadata is damaged or too large.

    Args:
      source: a path (`gs://` included), the bytes of a file, a Pillow image, or a uint8 array
        [H, W, 3], [H, W, 4] (RGBA), [H, W] or [H, W, 1]; or one of these as a `NamedImage`. Files:
        JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF, JPEG 2000, PPM; with the extra `heic` HEIC and HEIF.
      exif: whether to turn the image upright as its EXIF orientation says. The
        orientation of TIFF and HEIC is part of how the formats are read and always applied.
      max_pixels: the largest accepted width * height, checked before pixels are decoded.
      name: what to call the image in errors, where the source has no name of its own.
      least_size: for training only. JPEG files are decoded at 1/2, 1/4 or 1/8 of their size, sides
        rounded up, the smallest at which no side falls below what this function asks for: faster,
        and smoothed as libjpeg does it, by leaving out the high frequencies of each block. It is
        given the sides before the image is turned upright. Other sources are not affected.

    Returns:
      A loaded image in mode "RGB"; the source itself where nothing had to be done.

    Raises:
      ImageError: the file is missing, a directory, empty, damaged, too large or no image; or
        the array or Pillow image is empty or of a kind not listed above.
      OSError: the file is there and cannot be read: permissions, the disk or the system stand
        against it, not its content.
    """
    if isinstance(source, NamedImage):
        source, name = source.image, name or source.name
    label = name or _label(source)
    if isinstance(source, np.ndarray):
        source = _from_array(source, label)
    if isinstance(source, Image.Image):
        load(source, label, max_pixels)
        return _to_upright_rgb(source, exif, label)
    with _open_stream(source, label) as stream:
        try:
            image = read_image(stream, label, max_pixels, least_size)
        except OSError as error:  # of the file's system; the stream does not know its name
            raise OSError(error.errno, error.strerror, label) from error
        return _to_upright_rgb(image, exif, label)


def _label(source: ImageSource) -> str:
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source) or "image path ''"
    kinds = {bytes: "image bytes", np.ndarray: "image array"}
    return kinds.get(type(source), "image")


def _open_stream(source: str | os.PathLike | bytes, label: str) -> Stream:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if not isinstance(source, (str, os.PathLike)):
        raise ImageError(
            f"{label}: expected a path, bytes, a Pillow image or a uint8 array, "
            f"got {type(source).__name__}."
        )
    path = os.fspath(source)
    try:
        if path.startswith("gs://"):
            from etils import epath

            return io.BytesIO(epath.Path(path).read_bytes())
        return open(path, "rb")
    except FileNotFoundError:
        raise ImageError(f"{label}: no such file.") from None
    except IsADirectoryError:
        raise ImageError(f"{label}: this is a directory; pass the image files in it.") from None
    except ImportError as error:
        raise ImageError(
            f"{label}: reading gs:// paths needs siglip2_jax[gcs] installed ({error})."
        ) from error
    except ValueError as error:
        raise ImageError(f"{label}: the file cannot be read ({error}).") from error


def _from_array(array: np.ndarray, label: str) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise ImageError(
            f"{label}: expected a uint8 array [H, W, 3], [H, W, 4], [H, W] or [H, W, 1], channels "
            f"last and one image at a time, got {array.dtype} {list(array.shape)}."
        )
    if not array.size:
        raise ImageError(f"{label}: the array {list(array.shape)} has no pixels.")
    return Image.fromarray(array[:, :, 0] if array.ndim == 3 and channels == 1 else array)


def _to_upright_rgb(image: Image.Image, exif: bool, label: str) -> Image.Image:
    try:
        rgb = _to_rgb(image, label)
    except ImageError:
        raise
    except Exception as error:  # whatever Pillow trips over in damaged data
        raise damage_of(label, image.format, error) from error
    return _upright(rgb, image) if exif else rgb


def _to_rgb(image: Image.Image, label: str) -> Image.Image:
    mode = image.mode
    if mode in ("I", "F") or mode.startswith("I;16"):
        return _wide_grey_to_rgb(image, label)
    if mode == "LAB":
        from PIL import ImageCms

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        rgb = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert rgb is not None  # as it would be if `image` itself were changed
        return rgb
    if image.has_transparency_data:
        # La, premultiplied, is only convertible by way of LA.
        rgba = (image.convert("LA") if mode == "La" else image).convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(rgba, mask=rgba)
        return white
    return image if mode == "RGB" else image.convert("RGB")


def _wide_grey_to_rgb(image: Image.Image, label: str) -> Image.Image:
    """Grey of more than 8 bits, scaled by the rules in `decode`."""
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise ImageError(
            f'{label}: a mode "{image.mode}" image must be finite; it holds nan or inf.'
        )
    low, high = values.min(), values.max()
    if image.mode == "F":
        top = 1 if high <= 1 else 255
    else:
        top = 255 if image.mode == "I" and high <= 255 else 65535
    if low < 0 or high > top:
        raise ImageError(
            f'{label}: a mode "{image.mode}" image must hold values in 0..{top}, found '
            f"{low:g}..{high:g}; scale it to 8 bits first."
        )
    levels = np.rint(values * (255 / top)).astype(np.uint8)
    if (transparent := image.info.get("transparency")) is not None:
        levels[values == transparent] = 255
    return Image.fromarray(levels).convert("RGB")


def _upright(rgb: Image.Image, original: Image.Image) -> Image.Image:
    try:
        orientation = original.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # a broken EXIF block is no reason to lose the image
        return rgb
    if orientation not in _UPRIGHT:
        return rgb
    upright = rgb.transpose(_UPRIGHT[orientation])
    upright.info.clear()  # or whoever decodes the result again would turn it again
    return upright
