import errno
import io
import os
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from preprocess.image_files import encoded, over_white, picture, png, tagged

from siglip2_jax.preprocess.decode import ImageError, decode

# What a reader has to do, in order, to see the picture upright.
UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a.swapaxes(0, 1), 2),
    8: np.rot90,
}


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "BMP", "PPM", "GIF", "WEBP", "JPEG"])
def test_formats_and_ways_of_giving_them(file_format: str, tmp_path: Path) -> None:
    data = encoded(picture(), file_format, **({"lossless": True} if file_format == "WEBP" else {}))
    path = tmp_path / "photo"  # the content says what it is, not the name
    path.write_bytes(data)
    opened = Image.open(io.BytesIO(data))
    results = [decode(source) for source in (data, path, str(path), opened)]
    results.append(decode(np.asarray(results[0])))
    for image in results:
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), np.asarray(results[0]))
    lossy = {"JPEG": 12, "GIF": 48}.get(file_format, 0)
    assert np.abs(np.asarray(results[0]).astype(int) - np.asarray(picture())).max() <= lossy


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (5, 4), colour) for colour in ("red", "blue")]
    for file_format in ("GIF", "WEBP", "TIFF", "PNG"):
        options = {"lossless": True} if file_format == "WEBP" else {}
        data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
        assert decode(data).getpixel((0, 0)) == (255, 0, 0)


def converted(mode: str) -> Image.Image:
    if mode in ("La", "RGBa"):
        return picture().convert(mode.upper()).convert(mode)
    if mode == "PA":
        return picture().convert("P").convert("PA")
    if mode == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        return ImageCms.profileToProfile(picture(), srgb, lab, outputMode="LAB")
    if mode.startswith("I;16"):
        grey = np.asarray(picture().convert("L")).astype(">u2" if mode == "I;16B" else "<u2")
        return Image.frombytes(mode, (64, 48), (grey * 257).astype(grey.dtype).tobytes())
    return picture().convert(mode)


MODES = "1 L LA La P PA RGB RGBA RGBa RGBX CMYK YCbCr LAB HSV I I;16 I;16L I;16B F".split()


@pytest.mark.parametrize("mode", MODES)
def test_every_mode(mode: str) -> None:
    image = converted(mode)
    assert image.mode == mode
    result = decode(image)
    assert (result.mode, result.size) == ("RGB", (64, 48))
    grey = mode in {"1", "L", "LA", "La", "I", "F"} or mode.startswith("I;16")
    expected = picture().convert("L").convert("RGB") if grey else picture()
    difference = np.abs(np.asarray(result).astype(int) - np.asarray(expected))
    # Black-and-white and palettes are dithered; the colour spaces are rounded on the way there.
    tolerance = {"1": 130, "P": 30, "PA": 30, "LAB": 3, "HSV": 2, "YCbCr": 2}.get(mode, 0)
    assert difference.mean() <= tolerance


def test_alpha_is_composited_over_white_exactly() -> None:
    colour, alpha = (plane.astype(np.uint8) for plane in np.mgrid[:256, :256])
    rgba = np.stack([colour, colour, colour, alpha], -1)
    expected = over_white(rgba[..., :3], alpha)
    np.testing.assert_array_equal(np.asarray(decode(rgba)), expected)
    np.testing.assert_array_equal(
        np.asarray(decode(encoded(Image.fromarray(rgba), "PNG"))), expected
    )
    la = Image.merge("LA", [Image.fromarray(colour), Image.fromarray(alpha)])
    np.testing.assert_array_equal(np.asarray(decode(la)), expected)


def test_transparent_colours_of_png_and_gif_turn_white() -> None:
    grey = Image.fromarray(np.array([[77, 200]], np.uint8))
    assert np.asarray(decode(encoded(grey, "PNG", transparency=77))).tolist() == [
        [[255] * 3, [200] * 3]
    ]
    bits = grey.convert("1", dither=Image.Dither.NONE)
    assert np.asarray(decode(encoded(bits, "PNG", transparency=0))).min() == 255
    rgb = png(2, 1, 8, 2, b"\0\1\2\3\4\5\6", struct.pack(">3H", 1, 2, 3))
    assert np.asarray(decode(rgb)).tolist() == [[[255, 255, 255], [4, 5, 6]]]
    wide = png(2, 1, 16, 0, b"\0" + struct.pack(">2H", 1000, 40000), struct.pack(">H", 1000))
    assert np.asarray(decode(wide))[0, :, 0].tolist() == [255, 156]
    palette = grey.convert("P")
    for file_format, transparency in (("PNG", 77), ("GIF", 77), ("PNG", bytes([255] * 77 + [0]))):
        data = encoded(palette, file_format, transparency=transparency)
        assert np.asarray(decode(data))[0, :, 0].tolist() == [255, 200]


def test_wide_grey_is_scaled_and_rounded() -> None:
    values = np.array([[0, 128, 129, 385, 386, 65535]], np.uint16)
    expected = [0, 0, 1, 1, 2, 255]
    assert np.asarray(decode(Image.fromarray(values)))[0, :, 0].tolist() == expected
    data = encoded(Image.fromarray(values), "PNG")
    assert np.asarray(decode(data))[0, :, 1].tolist() == expected
    assert (
        np.asarray(decode(Image.fromarray(values.astype(np.int32))))[0, :, 0].tolist() == expected
    )
    levels = Image.fromarray(np.array([[0, 100, 255]], np.int32))
    assert np.asarray(decode(levels))[0, :, 0].tolist() == [0, 100, 255]


def test_float_images() -> None:
    def grey(values: list[float]) -> list[int]:
        return np.asarray(decode(Image.fromarray(np.array([values], np.float32))))[0, :, 0].tolist()

    assert grey([0.0, 0.5, 1.0]) == [0, 128, 255]
    assert grey([0.0, 1.0, 100.6, 255.0]) == [0, 1, 101, 255]
    for bad in ([np.nan, 1.0], [0.0, np.inf]):
        with pytest.raises(ImageError, match="must be finite"):
            grey(bad)
    for bad in ([-1.0, 100.0], [0.0, 256.0]):
        with pytest.raises(ImageError, match=r"0\.\.\d+, found"):
            grey(bad)
    with pytest.raises(ImageError, match="0..65535, found"):
        decode(Image.fromarray(np.array([[70000]], np.int32)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_exif_orientation(orientation: int, file_format: str, tmp_path: Path) -> None:
    data = encoded(picture(), file_format, exif=tagged(orientation))
    stored = np.asarray(decode(encoded(picture(), file_format)))
    upright = UPRIGHT[orientation](stored)
    path = tmp_path / "photo"
    path.write_bytes(data)
    for source in (data, path, Image.open(io.BytesIO(data))):
        result = decode(source)
        np.testing.assert_array_equal(np.asarray(result), upright)
        np.testing.assert_array_equal(np.asarray(decode(result)), upright)
    expected = upright if file_format == "TIFF" else stored  # as documented
    np.testing.assert_array_equal(np.asarray(decode(data, exif=False)), expected)


def test_exif_of_grey_and_broken_exif() -> None:
    result = decode(encoded(picture().convert("L"), "JPEG", exif=tagged(6)))
    assert result.size == decode(result).size == (48, 64)
    assert decode(encoded(picture(), "JPEG", exif=b"Exif\0\0no such thing")).size == (64, 48)
    # A resolution that is a text, which ImageOps.exif_transpose gives up on, beside orientation 6.
    fields = struct.pack("<HHII", 0x112, 3, 1, 6) + struct.pack("<HHI4s", 0x11A, 2, 3, b"ab")
    odd = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + fields + bytes(4)
    assert decode(encoded(picture(), "PNG", exif=odd)).size == (48, 64)


def test_exif_photos(shared: Path) -> None:
    photos = [decode(shared / f"data/exif_orientation/Landscape_{i}.jpg") for i in range(1, 9)]
    assert {photo.size for photo in photos} == {(1800, 1200)}
    first = np.asarray(photos[0].reduce(8)).astype(int)
    for photo in photos[1:]:
        assert np.abs(np.asarray(photo.reduce(8)) - first).mean() < 2


def test_arrays() -> None:
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (5, 7, 3), np.uint8)
    np.testing.assert_array_equal(np.asarray(decode(rgb)), rgb)
    np.testing.assert_array_equal(np.asarray(decode(rgb[::-1, ::2])), rgb[::-1, ::2])
    for grey in (rgb[..., 0], rgb[..., :1]):
        np.testing.assert_array_equal(np.asarray(decode(grey)), np.repeat(rgb[..., :1], 3, 2))
    bad = [(5, 7, 2), (3, 5, 7), (1, 5, 7, 3), (7,), ()]
    for array in [np.zeros(s, np.uint8) for s in bad] + [rgb / 255, rgb.astype(np.int32), rgb > 9]:
        with pytest.raises(ImageError, match=r"expected a uint8 array \[H, W, 3\]"):
            decode(array)
    empty = [np.zeros(shape, np.uint8) for shape in [(0, 4, 3), (4, 0, 3), (0, 0)]]
    for source in [*empty, Image.new("RGB", (0, 5))]:
        with pytest.raises(ImageError, match="no pixels"):
            decode(source)


def test_a_file_that_cannot_be_read_is_no_damaged_image(tmp_path: Path, monkeypatch) -> None:
    """Errors of a disk come at the first byte or in the middle of the pixels."""

    def is_of_the_system(path: str) -> None:
        with pytest.raises(OSError, match="Input/output error") as info:
            decode(path)
        assert (info.value.errno, info.value.filename) == (errno.EIO, path)

    if os.path.exists("/proc/self/mem"):  # whose first page is never there
        is_of_the_system("/proc/self/mem")
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(picture(), "JPEG"))

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if size is None or not 0 <= size < 4096:  # the header comes in smaller pieces
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().read(size)

    monkeypatch.setattr("builtins.open", lambda *_: Failing(path.read_bytes()))
    is_of_the_system(str(path))


def test_errors_name_the_file_and_what_was_found(tmp_path: Path) -> None:
    photo = encoded(picture(), "JPEG")
    cases = {
        "missing.jpg": (None, "no such file"),
        "empty.jpg": (b"", "zero bytes"),
        "notes.jpg": (b"this is a text", "not an image file"),
        "head.jpg": (photo[:30], "JPEG data is damaged or truncated"),
        "half.jpg": (photo[: len(photo) // 2], "JPEG data is damaged or truncated"),
    }
    for file, (content, message) in cases.items():
        path = tmp_path / file
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ImageError, match=message) as info:
            decode(path)
        assert str(info.value).startswith(f"{path}: ") and str(info.value).endswith(".")
    with pytest.raises(ImageError, match="is a directory"):
        decode(tmp_path)
    with pytest.raises(ImageError, match="cannot be read"):
        decode("photo\0.jpg")
    with pytest.raises(ImageError, match="^item 7: .*zero bytes"):
        decode(b"", name="item 7")
    with pytest.raises(ImageError, match="damaged"):
        decode(Image.open(io.BytesIO(photo[:-200])))


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM"])
@pytest.mark.parametrize("strict", [True, False])
def test_truncation_is_an_error(file_format: str, strict: bool) -> None:
    data = encoded(Image.effect_noise((64, 48), 60).convert("RGB"), file_format)
    for length in (12, 20, len(data) // 2, len(data) - 60):
        with warnings.catch_warnings(), pytest.raises(ImageError):
            if not strict:  # as users run it: Pillow's warnings do not stop it
                warnings.simplefilter("ignore")
            decode(data[:length])


def test_pixel_limit_is_checked_before_decoding() -> None:
    bomb = png(60_000, 60_000, 8, 2, b"")  # decoding it would complain of missing data
    with pytest.raises(
        ImageError, match=r"60000 x 60000 \(height x width\) .*max_pixels=200,000,0"
    ):
        decode(bomb)
    with pytest.raises(ImageError, match="max_pixels=3,071"):
        decode(encoded(picture(), "PNG"), max_pixels=48 * 64 - 1)
    assert decode(encoded(picture(), "PNG"), max_pixels=48 * 64).size == (64, 48)


def test_large_photo_decodes_without_warning() -> None:
    photo = encoded(Image.new("L", (12_000, 9_000), 77), "JPEG")
    assert decode(photo).size == (12_000, 9_000)


def test_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # every photo here is "too large" for it
    paths = [tmp_path / f"{i}.jpg" for i in range(40)]
    for i, path in enumerate(paths):
        picture(60 + i, 80).save(path)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with ThreadPoolExecutor(8) as pool:
        sizes = [image.size for image in pool.map(decode, paths * 3)]
    assert sizes == [(80, 60 + i) for i in range(40)] * 3
    assert not before or len(os.listdir("/proc/self/fd")) <= before


def test_cloud_paths_go_through_epath(monkeypatch: pytest.MonkeyPatch) -> None:
    epath = pytest.importorskip("etils.epath")
    data = encoded(picture(), "PNG")

    class Bucket:
        def __init__(self, path: str) -> None:
            self.path = path

        def read_bytes(self) -> bytes:
            return {"gs://bucket/photo.png": data}[self.path]

    monkeypatch.setattr(epath, "Path", Bucket)
    assert decode("gs://bucket/photo.png").size == (64, 48)
