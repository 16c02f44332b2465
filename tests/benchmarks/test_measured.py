"""Rows that evaluators get in `siglip2 eval`: those of the model, shared and saved in parts."""

import io
import warnings
from functools import partial

import numpy as np
import pytest
from PIL import Image

from siglip2_jax.benchmarks import gather, measured
from siglip2_jax.benchmarks.gather import gather_blocks, gather_texts
from siglip2_jax.benchmarks.measured import Measured, own_share
from siglip2_jax.inference.embedder import Embedder
from siglip2_jax.preprocess.decode import ImageError, NamedImage
from siglip2_jax.resumable import Rows
from siglip2_jax.testing import tiny_embedder


@pytest.fixture(scope="module")
def model() -> Embedder:
    return tiny_embedder(tokenizer=False)


def photos(count: int) -> list[NamedImage]:
    rng = np.random.default_rng(0)
    found = []
    for i in range(count):
        data = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (8 + i % 5, 12, 3), np.uint8)).save(data, "PNG")
        found.append(NamedImage(data.getvalue() if i % 7 != 3 else b"no photo", f"photo {i}"))
    return found


def test_rows_are_the_models(model):
    images, shown = photos(20), []
    found = Measured(model, batch_size=4)
    found.report_to(lambda *x: shown.append(x), 20)
    rows = found.embed_images(iter(images), max_num_patches=16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = model.embed_images(images, max_num_patches=16, batch_size=4)
    np.testing.assert_array_equal(rows, expected)
    assert [x.split(":")[0] for x in found.failed] == ["photo 3", "photo 10", "photo 17"]
    assert found.images == found.embedded == 20
    assert 0 <= found.data_wait <= found.seconds
    assert shown[-1] == (20, 20)
    pooled = found.embed_images(images[:3], max_num_patches=16, normalize=False)
    np.testing.assert_allclose(
        pooled, model.image_features(images[:3], max_num_patches=16).pooled, atol=1e-5
    )
    assert found.images == 23 and found.variant is model.variant
    with pytest.raises(ImageError, match="photo 3"):
        found.embed_images(images, on_error="raise")


def test_goes_on_where_it_was_stopped(model, tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "Rows", partial(Rows, rows_per_part=4))
    images = photos(30)
    whole = Measured(model, batch_size=2).embed_images(images, max_num_patches=16)

    def stopped():
        yield from images[:20]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Measured(model, tmp_path, batch_size=2).embed_images(stopped(), max_num_patches=16)
    saved = sorted(tmp_path.iterdir())
    assert saved and not list(tmp_path.glob("*.tmp"))
    saved[-1].write_bytes(b"half a file")  # and is made again
    rest = Measured(model, tmp_path, batch_size=2)
    np.testing.assert_array_equal(rest.embed_images(images, max_num_patches=16), whole)
    assert rest.embedded == 30 - 4 * (len(saved) - 1) and rest.images == 30
    assert len(rest.failed) == 4
    again = Measured(model, tmp_path, batch_size=2)
    np.testing.assert_array_equal(again.embed_images(images, max_num_patches=16), whole)
    assert again.embedded == 0 and len(again.failed) == 4


@pytest.mark.parametrize("total", [0, 1, 3, 4, 11, 12, 13, 29])
@pytest.mark.parametrize("processes", [1, 3])
def test_rows_of_all_processes_are_in_order(total, processes, monkeypatch):
    """Processes one after the other, each with what the others would send."""
    size, rows = 4, np.arange(2.0 * total, dtype=np.float32).reshape(total, 2)
    shares = []
    monkeypatch.setattr(gather.jax, "process_count", lambda: processes)
    for index in range(processes):
        own = list(own_share(rows, size, index))
        shares.append(np.array(own, np.float32).reshape(-1, 2))
    assert sum(map(len, shares)) == total
    rounds = -(-total // (size * processes))
    sent = [np.pad(x, [(0, rounds * size - len(x)), (0, 0)]) for x in shares]
    monkeypatch.setattr(gather, "process_allgather", lambda x: np.stack(sent))
    for share in shares:
        np.testing.assert_array_equal(gather_blocks(share, total, size), rows)


def test_texts_of_all_processes(monkeypatch):
    everyone = [["a"], [], ["Zürich: no photo", "c"]]
    data = [np.frombuffer(str(x).replace("'", '"').encode(), np.uint8) for x in everyone]
    lengths = np.array([len(x) for x in data])
    answers = iter([lengths, np.stack([np.pad(x, (0, lengths.max() - len(x))) for x in data])])
    monkeypatch.setattr(gather.jax, "process_count", lambda: 3)
    monkeypatch.setattr(gather, "process_allgather", lambda x: next(answers))
    assert gather_texts(["a"]) == ["a", "Zürich: no photo", "c"]


def test_nothing_to_embed(model, tmp_path):
    assert Measured(model, tmp_path).embed_images([]).shape == (0, 24)
