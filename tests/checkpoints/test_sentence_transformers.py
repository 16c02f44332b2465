"""sentence-transformers and mteb open exports of fixed resolution and give our embeddings."""

import numpy as np
import pytest
from PIL import Image

from siglip2_jax import load
from siglip2_jax.testing import TINY_FIXED, tiny_embedder

pytestmark = [
    pytest.mark.parity,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # in them, of others
]
TEXTS = ["a dog", "two people on a beach", "a red bus " * 40]  # short, and past the length


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "tiny"
    tiny_embedder(TINY_FIXED).save(path, "hf")
    return path


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    sizes = [(16, 16), (40, 20), (9, 31)]
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for h, w in sizes]


@pytest.fixture(scope="module")
def ours(export, images):
    """Embeddings of images and texts, with the pixels of transformers."""
    model = load(export, preproc="hf")
    return model.embed_images(images), model.embed_texts(TEXTS)


def unit(rows):
    rows = np.asarray(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_sentence_transformers(export, images, ours):
    module = pytest.importorskip("sentence_transformers")
    model = module.SentenceTransformer(str(export), device="cpu")
    of_images, of_texts = model.encode(images), model.encode(TEXTS)
    np.testing.assert_allclose(of_images, ours[0], atol=1e-5, rtol=0)
    np.testing.assert_allclose(of_texts, ours[1], atol=1e-5, rtol=0)
    alone = model.encode(TEXTS[0])  # in a batch of its own, texts of other lengths pad nothing
    np.testing.assert_allclose(alone, ours[1][0], atol=1e-5, rtol=0)
    found = model.similarity(of_images, of_texts).numpy()
    np.testing.assert_allclose(found, ours[0] @ ours[1].T, atol=1e-5, rtol=0)


def test_without_its_files_texts_are_wrong(export, tmp_path, ours):
    """The files have a purpose: if this fails, they can go."""
    module = pytest.importorskip("sentence_transformers")
    for path in export.iterdir():
        if path.name not in ("modules.json", "sentence_bert_config.json"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    model = module.SentenceTransformer(str(tmp_path), device="cpu")
    assert np.abs(unit(model.encode(TEXTS[:2])) - ours[1][:2]).max() > 0.05
    padded = {"text": {"padding": "max_length", "max_length": 64, "truncation": True}}
    found = model.encode(TEXTS[:2], processing_kwargs=padded)  # as docs/hub.md has it
    np.testing.assert_allclose(unit(found), ours[1][:2], atol=1e-5, rtol=0)


def test_mteb(export, images, ours):
    pytest.importorskip("mteb")
    datasets = pytest.importorskip("datasets")
    from mteb.models.model_implementations.siglip_models import SiglipModelWrapper

    model = SiglipModelWrapper(str(export), revision=None, device="cpu")

    class Batches(list):
        def __init__(self, **columns):
            super().__init__([columns])
            self.dataset = datasets.Dataset.from_dict({name: [0] for name in columns})

    task = {"task_metadata": None, "hf_split": "test", "hf_subset": "default"}
    of_images = model.encode(Batches(image=images), **task, show_progress_bar=False)
    of_texts = model.encode(Batches(text=TEXTS), **task, show_progress_bar=False)
    # It gives vectors before normalisation.
    np.testing.assert_allclose(unit(of_images), ours[0], atol=1e-5, rtol=0)
    np.testing.assert_allclose(unit(of_texts), ours[1], atol=1e-5, rtol=0)
