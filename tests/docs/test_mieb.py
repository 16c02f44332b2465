"""The interface of mteb without mteb: batches as its DataLoader gives them."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from siglip2_jax.inference.embedder import Embedder
from siglip2_jax.preprocess.decode import ImageError, decode

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "mieb.py"
MiebEncoder = runpy.run_path(str(EXAMPLE))["MiebEncoder"]
TASK = {"task_metadata": None, "hf_split": "test", "hf_subset": "default"}


class Colours(Embedder):
    """An image is its mean colour, a text its first three letters; notes what was asked."""

    def __init__(self):
        self.asked = []

    def embed_images(self, images, *, max_num_patches, batch_size, on_error):
        self.asked.append((max_num_patches, batch_size, on_error))
        return unit([np.asarray(decode(image)).mean((0, 1)) for image in images])

    def embed_texts(self, texts, *, batch_size):
        self.asked.append(batch_size)
        return unit([list(map(ord, text[:3])) for text in texts])


def unit(rows):
    found = np.array(rows, np.float64).reshape(-1, 3)
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def figures(*colours):
    return [Image.new("RGB", (4, 3), colour) for colour in colours]


BATCHES = [
    {"image": figures((9, 0, 0), (0, 40, 30)), "text": ["red", "teal"]},
    {"image": figures((5, 5, 5)), "text": ["grey"]},
]


def test_images_texts_and_both():
    encoder = MiebEncoder(Colours(), max_num_patches=64)
    images = encoder.encode([{"image": x["image"]} for x in BATCHES], **TASK, batch_size=7)
    assert images.dtype == np.float32
    np.testing.assert_allclose(images, unit([[1, 0, 0], [0, 4, 3], [1, 1, 1]]), atol=1e-7)
    assert encoder.model.asked == [(64, 7, "raise")]
    texts = encoder.encode([{"text": x["text"]} for x in BATCHES], **TASK, batch_size=7)
    np.testing.assert_array_equal(texts, unit([list(b"red"), list(b"tea"), list(b"gre")]))
    assert encoder.model.asked[-1] == 7
    both = encoder.encode(iter(BATCHES), **TASK, prompt_type="query", show_progress_bar=True)
    np.testing.assert_array_equal(both, images + texts)


def test_similarities_are_cosines():
    encoder = MiebEncoder(Colours(), meta="named")
    assert encoder.mteb_model_meta == "named"
    x, y = np.random.default_rng(0).standard_normal((2, 5, 3))
    expected = [[a @ b / np.sqrt((a @ a) * (b @ b)) for b in y] for a in x]
    np.testing.assert_allclose(encoder.similarity(x, y), expected, atol=1e-6)
    np.testing.assert_allclose(encoder.similarity_pairwise(x, y), np.diag(expected), atol=1e-6)
    np.testing.assert_allclose(encoder.similarity(x[1], y), expected[1:2], atol=1e-6)
    assert not encoder.similarity(np.zeros(3), y).any()


def test_clear_errors():
    encoder = MiebEncoder(Colours())
    with pytest.raises(ValueError, match="nothing under 'image' or 'text'"):
        encoder.encode([{"audio": [1]}], **TASK)
    with pytest.raises(ValueError, match="2 images and 1 texts"):
        encoder.encode([{"image": BATCHES[0]["image"], "text": ["red"]}], **TASK)
    with pytest.raises(ValueError, match="precision is 'int8'"):
        encoder.encode(BATCHES, **TASK, precision="int8")
    with pytest.raises(ImageError, match="not an image file"):
        encoder.encode([{"image": [b"no image"]}], **TASK)
