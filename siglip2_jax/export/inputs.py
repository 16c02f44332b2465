"""Arrays of images and texts for an exported SigLIP 2, with NumPy, Pillow and SentencePiece alone.

`settings` is what the export.json beside this file holds: its rules are followed here.
"""

import string
from math import ceil

import numpy as np
from PIL import Image, ImageOps

LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
NO_PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))
NORMS = {
    "reference": lambda text: text.translate(LOWER),
    "unicode_lower": str.lower,
    "canonicalize": lambda text: " ".join(text.translate(NO_PUNCTUATION).lower().split()),
    "none": str,
}


def image_patches(paths, settings, max_num_patches=256):
    """Pixels [b, n, P], coordinates [b, n, 2] and valid patches [b, n] of image files."""
    rules = settings["image"]
    side, fixed = rules["patch_size"], rules["image_size"]
    n = (fixed // side) ** 2 if fixed else max_num_patches
    pixels = np.zeros((len(paths), n, side * side * 3), np.float32)
    yx, valid = np.zeros((len(paths), n, 2), np.int32), np.zeros((len(paths), n), bool)
    for i, path in enumerate(paths):
        image = open_image(path, rules["exif"])
        h, w = [fixed // side] * 2 if fixed else native_grid(image.size[::-1], side, n)
        values = resize(image, rules, [fixed] * 2 if fixed else [h * side, w * side])
        values = values[: h * side, : w * side].reshape(h, side, w, side, 3).swapaxes(1, 2)
        pixels[i, : h * w] = values.reshape(h * w, -1) / np.float32(127.5) - 1
        yx[i, : h * w] = np.indices((h, w)).reshape(2, -1).T
        valid[i, : h * w] = True
    return pixels, yx, valid


def token_ids(texts, settings, tokenizer):
    """Ids [b, T] of texts, by the tokenizer.model at this path."""
    from sentencepiece import SentencePieceProcessor

    processor, rules = SentencePieceProcessor(model_file=str(tokenizer)), settings["text"]
    ids = np.full((len(texts), rules["length"]), rules["pad_id"], np.int32)
    for row, text in zip(ids, texts, strict=True):
        pieces = processor.encode(NORMS[rules["norm"]](text))[: rules["length"] - 1]
        row[: len(pieces) + 1] = [*pieces, processor.eos_id()]
    return ids


def open_image(path, exif):
    """An RGB image, upright if `exif`, with white where it is transparent."""
    with Image.open(path) as file:
        if file.mode[0] in "IF":
            raise ValueError(f"{path} has Pillow's mode {file.mode}, expected 8 bits a channel")
        image = ImageOps.exif_transpose(file) if exif else file
        if image.has_transparency_data:
            rgba, image = image.convert("RGBA"), Image.new("RGB", image.size, "white")
            image.paste(rgba, mask=rgba)
        return image.convert("RGB")


def native_grid(size, side, most):
    """Rows and columns of patches of an image: the most that a budget allows in its shape."""
    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        h, w = (max(1, ceil(x * middle / side)) for x in size)
        low, high = (middle, high) if h * w <= most else (low, middle)
    return [max(1, ceil(x * low / side)) for x in size]


def resize(image, rules, size):
    """The image in this height and width, in levels from 0 to 255."""
    if rules["mode"] == "hf":
        return np.asarray(image.resize(size[::-1], Image.Resampling[rules["resample"].upper()]))
    pixels = np.asarray(image)
    if rules["image_size"]:
        for axis in (1, 0):
            pixels = between_neighbours(pixels, axis, size[axis])
        return pixels.clip(0, 255).astype(np.uint8)
    tall = np.tensordot(triangle(pixels.shape[0], size[0]), pixels.astype(np.float32), 1)
    wide = np.tensordot(triangle(pixels.shape[1], size[1]), tall.swapaxes(0, 1), 1)
    return wide.swapaxes(0, 1).clip(0, 255)


def triangle(size, out):
    """Weights [out, size] of a bilinear resize with antialiasing."""
    scale = 1 / (np.float32(out) / np.float32(size))
    centres = (np.arange(out, dtype=np.float32) + 0.5) * scale
    distance = np.abs(np.arange(size, dtype=np.float32) + 0.5 - centres[:, None])
    weights = np.maximum(0, 1 - distance / max(np.float32(1), scale))
    return weights / weights.sum(1, keepdims=True)


def between_neighbours(pixels, axis, out):
    """A bilinear resize of one axis without antialiasing."""
    size = pixels.shape[axis]
    centres = (np.arange(out, dtype=np.float32) + 0.5) * (np.float32(size) / np.float32(out)) - 0.5
    first, last = np.floor(centres), np.minimum(np.ceil(centres), size - 1)
    near = pixels.take(np.maximum(first, 0).astype(int), axis).astype(np.float32)
    far = pixels.take(last.astype(int), axis).astype(np.float32)
    return near + (far - near) * (centres - first).reshape(-1, *[1] * (2 - axis))
