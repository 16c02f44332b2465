"""Image files: whole pixels are read whatever surrounds them, and transparency of every kind."""

import io
import struct
import sys
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms
from preprocess.image_files import chunk, encoded, over_white, picture, png, tagged

from siglip2_jax.preprocess.decode import ImageError, decode

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
MEBIBYTE = 2**20
SIX = struct.pack(">4sIHHHIHHI", b"MM\0*", 8, 1, 0x112, 3, 1, 6, 0, 0)  # EXIF: orientation 6
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def wrong(made: bytes) -> bytes:
    """The chunk with a checksum that is not its own."""
    return made[:-1] + bytes([made[-1] ^ 1])


def zeros(mebibytes: int) -> bytes:
    return zlib.compress(bytes(mebibytes * MEBIBYTE))


PNG_ANCILLARY = {
    "compressed text that grows to 2 MiB": [chunk(b"zTXt", b"key\0\0" + zeros(2))],
    "international text that does": [chunk(b"iTXt", b"key\0\1\0\0\0" + zeros(2))],
    "text of 66 MiB in all": 66 * [chunk(b"zTXt", b"key\0\0" + zeros(1))],
    "a profile that grows to 2 MiB": [chunk(b"iCCP", b"sRGB\0\0" + zeros(2))],
    "a profile of an unknown method": [chunk(b"iCCP", b"sRGB\0\7" + zeros(1))],
    "an empty profile": [chunk(b"iCCP", b"")],
    "a profile that is cut short": [
        wrong(chunk(b"iCCP", b"sRGB\0\0" + zlib.compress(PROFILE)[:99]))
    ],
    "text of an unknown method": [chunk(b"zTXt", b"key\0\7text")],
    "a short gamma": [chunk(b"gAMA", b"\0")],
    "short primaries": [chunk(b"cHRM", b"\0" * 31)],
    "a short intent": [chunk(b"sRGB", b"")],
    "a short resolution": [chunk(b"pHYs", b"\0" * 8)],
    "a short animation": [chunk(b"acTL", b"\0")],
    "frames out of order": [chunk(b"acTL", b"\0\0\0\2\0\0\0\0"), chunk(b"fcTL", b"\0\0\0\5" * 7)],
    "wrong checksums": [wrong(chunk(kind, b"key\0value")) for kind in (b"tEXt", b"eXIf", b"prVt")],
}


@pytest.mark.parametrize("case", PNG_ANCILLARY)
@pytest.mark.filterwarnings("ignore:Invalid APNG")
def test_png_with_damaged_or_large_ancillary_chunks(case: str) -> None:
    samples = np.asarray(NOISE)
    rows = b"".join(b"\0" + row.tobytes() for row in samples)
    data = png(64, 48, 8, 2, rows, b"", *PNG_ANCILLARY[case])
    np.testing.assert_array_equal(np.asarray(decode(data)), samples)
    end = data.index(b"IEND") - 4
    after = png(64, 48, 8, 2, rows)[:-12] + b"".join(PNG_ANCILLARY[case]) + data[end:]
    np.testing.assert_array_equal(np.asarray(decode(after)), samples)


@pytest.mark.parametrize(
    "orientation",
    [
        chunk(b"eXIf", SIX),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
        chunk(
            b"zTXt",
            b"Raw profile type exif\0\0"
            + zlib.compress(b"\nexif\n      32\n" + (b"Exif\0\0" + SIX).hex().encode()),
        ),
    ],
    ids=["exif", "xmp", "raw profile"],
)
def test_orientation_of_a_png_stays_where_other_chunks_are_left_out(orientation: bytes) -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in np.asarray(NOISE))
    upright = np.rot90(np.asarray(NOISE), -1)
    for more in ([], PNG_ANCILLARY["a short gamma"]):
        data = png(64, 48, 8, 2, rows, b"", *more, orientation)
        np.testing.assert_array_equal(np.asarray(decode(data)), upright)


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


JPEG_SEGMENTS = {
    "a Photoshop block that ends early": segment(0xED, b"Photoshop 3.0\0" + b"8BIM\3\xed"),
    "a profile without its number": segment(0xE2, b"ICC_PROFILE\0"),
    "a short JFIF": segment(0xE0, b"JFIF\0"),
    "a short Adobe": segment(0xEE, b"Adobe"),
    "a list of images that is none": segment(0xE2, b"MPF\0MM\0*"),
    "an empty comment": segment(0xFE, b""),
}


@pytest.mark.parametrize("case", JPEG_SEGMENTS)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Image appears to be a malformed MPO")
def test_jpeg_with_damaged_segments(case: str) -> None:
    for image in (NOISE, NOISE.convert("CMYK")):  # CMYK needs its Adobe segment
        data = encoded(image, "JPEG", exif=tagged(6))
        expected = np.asarray(decode(data))
        assert expected.shape == (64, 48, 3)
        for place in (2, data.index(b"\xff\xdb")):
            mixed = data[:place] + JPEG_SEGMENTS[case] + data[place:]
            np.testing.assert_array_equal(np.asarray(decode(mixed)), expected)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_jpeg_with_damaged_exif() -> None:
    data = encoded(NOISE, "JPEG")
    exif = segment(0xE1, b"Exif\0\0MM\0*" + b"\xff" * 40)
    for more in (b"", JPEG_SEGMENTS["a short Adobe"]):
        mixed = data[:2] + exif + more + data[2:]
        np.testing.assert_array_equal(np.asarray(decode(mixed)), np.asarray(decode(data)))


def test_webp_with_metadata_that_is_cut_short() -> None:
    for image in (NOISE, Image.merge("RGBA", [*NOISE.split(), NOISE.getchannel(0)])):
        data = encoded(image, "WEBP", lossless=True, icc_profile=PROFILE, exif=tagged(6))
        expected = np.asarray(decode(data))
        assert expected.shape == (64, 48, 3)
        data += b"XMP " + struct.pack("<I", 900) + XMP  # promised and not there
        data = data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
        np.testing.assert_array_equal(np.asarray(decode(data)), expected)


def test_avif_with_damaged_exif() -> None:
    exif = tagged(6)
    exif[ExifTags.Base.Make] = "maker"
    data = encoded(NOISE, "AVIF", exif=exif)
    expected = np.asarray(decode(data))
    assert expected.shape == (64, 48, 3)
    place = data.index(b"MM\0*")
    damaged = data[:place] + b"\xff" * 8 + data[place + 8 :]
    np.testing.assert_array_equal(np.asarray(decode(damaged)), expected)


@pytest.mark.parametrize("file_format", ["GIF", "TIFF"])
@pytest.mark.filterwarnings("ignore:.*(Corrupt|corrupt).*")
def test_gif_and_tiff_with_damaged_metadata(file_format: str) -> None:
    options = {"comment": b"words" * 99} if file_format == "GIF" else {"icc_profile": PROFILE}
    image = NOISE.quantize(200) if file_format == "GIF" else NOISE
    data = encoded(image, file_format, **options)
    place = data.index(b"words" if file_format == "GIF" else PROFILE[:40])
    damaged = data[:place] + bytes(b ^ 0x55 for b in data[place : place + 40]) + data[place + 40 :]
    np.testing.assert_array_equal(np.asarray(decode(damaged)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "AVIF"])
def test_damaged_pixels_are_refused_under_the_name_of_the_file(file_format: str) -> None:
    data = encoded(NOISE, file_format)
    half = len(data) // 2
    cut = data[:half]
    with pytest.raises(ImageError, match=f"^a.png: the {file_format} data is damaged or truncated"):
        decode(cut, name="a.png")
    with pytest.raises(ImageError, match="^a.png: the PNG data is damaged"):
        rows = b"".join(b"\0" + row.tobytes() for row in np.asarray(NOISE))
        compressed = zlib.compress(rows)
        broken = compressed[:999] + b"\xff\0" * 99 + compressed[1197:]
        good = png(64, 48, 8, 2, rows, b"", *PNG_ANCILLARY["a short gamma"])
        decode(good.replace(compressed, broken), name="a.png")


def packed(samples: np.ndarray, depth: int) -> bytes:
    """Rows [H, W, channels] as a PNG has them, each after a zero for its filter."""
    if depth == 16:
        rows = samples.astype(">u2").reshape(len(samples), -1).view(np.uint8)
    else:
        bits = np.unpackbits(samples.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :]
        rows = np.packbits(bits.reshape(len(samples), -1), axis=1)
    return b"".join(b"\0" + row.tobytes() for row in rows)


def grey_levels(samples: np.ndarray, depth: int) -> np.ndarray:
    return np.rint(samples * (255 / (2**depth - 1))).astype(int)


GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
PNG_KINDS = [
    *((depth, GREY) for depth in (1, 2, 4, 8, 16)),
    *((depth, PALETTE) for depth in (1, 2, 4, 8)),
    *((depth, colour) for depth in (8, 16) for colour in (RGB, GREY_ALPHA, RGBA)),
]


@pytest.mark.parametrize(("depth", "colour"), PNG_KINDS)
@pytest.mark.parametrize("transparent", [True, False])
def test_png_of_every_depth_and_colour_type_over_white(
    depth: int, colour: int, transparent: bool
) -> None:
    rng = np.random.default_rng(depth * 10 + colour)
    channels = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}[colour]
    # Few values, so that the transparent colour is met, with neighbours that differ in one bit.
    values = rng.integers(0, 2**depth, 5)
    values = np.concatenate([values, values ^ 1, values ^ (1 << (depth - 1))])
    samples = rng.choice(values, (37, 41, channels))
    samples[:, ::3] = samples[5, 7]
    chosen, trns, more = samples[5, 7], b"", []
    alpha = np.full(samples.shape[:2], 255)
    if colour == PALETTE:
        palette = rng.integers(0, 256, (2**depth, 3))
        palette_alpha = rng.integers(0, 256, 2**depth) if transparent else None
        more = [chunk(b"PLTE", palette.astype(np.uint8).tobytes())]
        expected = palette[samples[..., 0]]
        if transparent:
            trns = palette_alpha.astype(np.uint8).tobytes()
            alpha = palette_alpha[samples[..., 0]]
    elif colour in (GREY, RGB):
        expected = grey_levels(samples, depth) if colour == GREY else samples >> (depth - 8)
        if transparent:
            trns = chosen.astype(">u2").tobytes()
            alpha = np.where((samples == chosen).all(-1), 0, 255)
    else:
        expected, alpha = (samples >> (depth - 8))[..., :-1], (samples >> (depth - 8))[..., -1]
    expected = over_white(np.broadcast_to(expected, (37, 41, 3)), alpha)
    data = png(41, 37, depth, colour, packed(samples, depth), trns, *more)
    np.testing.assert_array_equal(np.asarray(decode(data)), expected)
    with_bad_text = png(
        41, 37, depth, colour, packed(samples, depth), trns, *more, chunk(b"gAMA", b"")
    )
    np.testing.assert_array_equal(np.asarray(decode(with_bad_text)), expected)


def test_png_without_its_palette_is_refused() -> None:
    """Pillow only notices where it converts the pixels."""
    with pytest.raises(ImageError, match=r"^a.png: the PNG data is damaged or truncated \(.+\)\.$"):
        decode(png(1, 1, 8, 3, b"\0\0"), name="a.png")


def test_lfs_pointer_says_so() -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    with pytest.raises(ImageError, match="^a.jpg: it is a Git LFS pointer.*git lfs pull"):
        decode(pointer, name="a.jpg")


@pytest.fixture
def heic() -> Callable[..., bytes]:
    pillow_heif = pytest.importorskip("pillow_heif", exc_type=ImportError)

    def encode(image: Image.Image, **options) -> bytes:
        buffer = io.BytesIO()
        file = pillow_heif.from_pillow(image)
        file.info["thumbnails"] = [32]
        file.save(buffer, quality=90, chroma=444, **options)
        return buffer.getvalue()

    return encode


def test_heic_has_its_colours_and_is_upright(heic: Callable[..., bytes]) -> None:
    image = picture()
    upright = np.asarray(image.transpose(Image.Transpose.ROTATE_270)).astype(int)
    data = heic(image)
    assert np.abs(np.asarray(decode(data)).astype(int) - np.asarray(image)).max() <= 4
    for exif in (True, False):
        turned = np.asarray(decode(heic(image, exif=tagged(6).tobytes()), exif=exif)).astype(int)
        assert turned.shape == (64, 48, 3)
        assert np.abs(turned - upright).max() <= 4
    rgba = np.dstack([np.asarray(image), np.indices((48, 64)).sum(0).astype(np.uint8) * 2])
    error = np.asarray(decode(heic(Image.fromarray(rgba)))) - over_white(
        rgba[..., :3], rgba[..., 3]
    )
    assert np.abs(error).max() <= 6


def test_heic_is_held_to_the_limits(heic: Callable[..., bytes]) -> None:
    data = heic(NOISE)
    with pytest.raises(ImageError, match="max_pixels=3,071"):
        decode(data, max_pixels=48 * 64 - 1)
    with pytest.raises(ImageError, match=r"^a.heic: the HEIF data is damaged[^\n]*\.$"):
        decode(data[: len(data) // 2], name="a.heic")
    assert decode(data, least_size=lambda size: (6, 8)).size == (64, 48)


def test_heic_without_the_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    boxes = [b"heic\0\0\0\0mif1heic", b"mif1\0\0\0\0mif1heic", b"heix\0\0\0\0"]
    for box in boxes:
        data = struct.pack(">I", 8 + len(box)) + b"ftyp" + box + bytes(99)
        with pytest.raises(ImageError, match=r"^a.heic: .*pip install 'siglip2_jax\[heic\]'\.$"):
            decode(data, name="a.heic")
    assert decode(encoded(NOISE, "AVIF")).size == (64, 48)  # of the same container
