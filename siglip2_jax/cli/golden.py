"""The published logits of the released NaFlex checkpoints, and the drawings they belong to.

From the public conversion script of transformers (`convert_siglip2_to_hf.py`, Apache-2.0), which
compares both released NaFlex models with the official code: 7 texts by 3 drawn images, 256 tokens,
64 text tokens, within 1e-3 absolute and relative.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

from siglip2_jax.inference.embedder import Embedder

IMAGE_SIZES = ((224, 224), (1024, 1024), (1024, 224))
"""Width and height of each drawing."""

TEXTS = (
    "circle",
    "ellipsoid",
    "blue circle on red background",
    "blue circle with green border on red background",
    "green circle on red background",
    "a dog",
    "a blue dog with a green border on a red background",
)

LOGITS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "B/16 NaFlex": (
        (1.0195, -0.0280, -1.4468),
        (-4.5395, -6.2269, -1.5667),
        (4.1757, 5.0358, 3.5159),
        (9.4264, 10.1879, 6.3353),
        (2.4409, 3.1058, 4.5491),
        (-12.3230, -13.7355, -13.4632),
        (1.1520, 1.1687, -1.9647),
    ),
    "So400m/16 NaFlex": (
        (0.9422, 0.5540, -2.4405),
        (-7.3522, -9.4931, -6.3499),
        (5.7852, 6.7288, 7.7893),
        (9.9881, 10.8136, 9.2121),
        (5.3660, 5.7746, 8.4130),
        (-12.7218, -14.2631, -13.6442),
        (0.6384, 0.4278, -0.9022),
    ),
}
"""Per release, a row per text and a column per drawing."""

TOLERANCE = 1e-3
"""Absolute and relative."""


def draw(width: int, height: int) -> Image.Image:
    """A blue circle with a green outline on red."""
    image = Image.new("RGB", (width, height), "red")
    x, y = width // 2, height // 2
    radius = min(x, y) // 8 * 7
    box = (x - radius, y - radius, x + radius, y + radius)
    ImageDraw.Draw(image).ellipse(box, fill="blue", outline="green", width=width // 20)
    return image


def golden_logits(model: Embedder) -> Float[np.ndarray, "7 3"]:
    """Logits of a model for the published texts and drawings.

    The published values went through transformers' preprocessing: load with `preproc="hf"`.
    """
    images = model.embed_images([draw(*size) for size in IMAGE_SIZES], on_error="raise")
    return model.logits(images, model.embed_texts(list(TEXTS))).T
