"""Items of image files and tars: what they are, what is wrong with them, and their batches."""

import hashlib
import io

import numpy as np
import pytest
from data.samples import picture
from PIL import Image

from siglip2_jax.data.items.find import find_items
from siglip2_jax.data.items.reader import ItemReader
from siglip2_jax.preprocess.image import ImagePreprocessor

PREPROCESS = ImagePreprocessor(4, None)


def read(shards, **options):
    options = {"max_num_patches": 30, "batch_size": 4} | options
    with ItemReader(shards, PREPROCESS, **options) as reader:
        return list(reader)


@pytest.fixture
def folder(tmp_path):
    """Seven images, the fourth and fifth of which are broken."""
    for i in range(7):
        data = picture(i, 40 + i, 28)
        (tmp_path / f"{i}.jpg").write_bytes({3: data[:200], 4: b""}.get(i, data))
    return tmp_path


def test_items_of_files(folder):
    batches = read(find_items([str(folder)]))
    assert [(x.shard, x.first, x.total, len(x.items)) for x in batches] == [
        (0, 0, 7, 4),
        (0, 4, 7, 3),
    ]
    for i, (item, batch, row) in enumerate(
        (item, some, row) for some in batches for row, item in enumerate(some.items)
    ):
        path = folder / f"{i}.jpg"
        data = path.read_bytes()
        assert item.id == str(path) and item.caption is None and item.fields == {}
        assert item.content == (hashlib.blake2b(data, digest_size=16).hexdigest() if data else "")
        if i in (3, 4):
            assert item.error.startswith(f"{path}: ") and item.width == item.height == 0
            assert not batch.patches.valid[row].any() and not batch.patches.pixels[row].any()
            continue
        assert item.error is None and (item.width, item.height) == Image.open(io.BytesIO(data)).size
        expected = PREPROCESS(str(path), 30)
        np.testing.assert_array_equal(batch.patches.pixels[row], expected.pixels[0])
        np.testing.assert_array_equal(batch.patches.yx[row], expected.yx[0])
        np.testing.assert_array_equal(batch.patches.valid[row], expected.valid[0])
