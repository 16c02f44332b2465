"""Items of Parquet files against pyarrow, and of files in stores."""

import hashlib
import io

import numpy as np
import pytest
from data.items.test_find import write_tars
from data.samples import picture
from PIL import Image

from siglip2_jax.data import Parquet
from siglip2_jax.data.example import ExampleError
from siglip2_jax.data.items.find import find_items
from siglip2_jax.data.items.item import USUAL, Columns
from siglip2_jax.data.items.reader import ItemReader
from siglip2_jax.data.parquet import ParquetFile
from siglip2_jax.data.tools.index import index
from siglip2_jax.preprocess.image import ImagePreprocessor

PREPROCESS = ImagePreprocessor(4, None)
pytestmark = pytest.mark.search


def write(path, rows, group=4):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group)


def rows_of(first, count, **more):
    return [
        {
            "image": {"bytes": picture(i), "path": f"{i}.jpg"},
            "raw": picture(i, 30, 30),
            "text": f"row {i}",
            "title": [f"title {i}", "x"],
            "label": i,
            **more,
        }
        for i in range(first, first + count)
    ]


def read(shards, columns=USUAL, **options):
    options = {"max_num_patches": 30, "batch_size": 4, "columns": columns} | options
    with ItemReader(shards, PREPROCESS, **options) as reader:
        return [
            (item, [x[row] for x in (batch.patches.pixels, batch.patches.valid)])
            for batch in reader
            for row, item in enumerate(batch.items)
        ]


@pytest.mark.parametrize(
    ("columns", "image", "caption", "workers"),
    [
        (Columns(), "image", "text", 0),
        (Columns("raw", "title", fields=("label",)), "raw", "title", 0),
        (Columns(id="label"), "image", "text", 2),
    ],
)
def test_items_against_pyarrow(tmp_path, columns, image, caption, workers):
    write(tmp_path / "a.parquet", rows_of(0, 11))
    write(tmp_path / "b.parquet", rows_of(11, 3), group=2)
    from pyarrow import parquet

    shards = find_items([str(tmp_path)], columns)
    assert [shard.name for shard in shards] == ["000000-a", "000001-b"]
    items = iter(read(shards, columns, workers=workers))
    for name in ("a.parquet", "b.parquet"):
        for i, row in enumerate(parquet.read_table(tmp_path / name).to_pylist()):
            item, (pixels, valid) = next(items)
            data = row[image]["bytes"] if image == "image" else row[image]
            text = row[caption] if caption == "text" else row[caption][0]
            assert item.id == (
                f"{tmp_path}/{name}:{i}" if columns.id is None else str(row["label"])
            )
            assert item.content == hashlib.blake2b(data, digest_size=16).hexdigest()
            assert (item.caption, item.error) == (text, None)
            assert item.fields == ({"label": row["label"]} if columns.fields else {})
            assert (item.width, item.height) == Image.open(io.BytesIO(data)).size
            expected = PREPROCESS(data, 30)
            np.testing.assert_array_equal(pixels, expected.pixels[0])
            np.testing.assert_array_equal(valid, expected.valid[0])
    assert next(items, None) is None


def test_no_captions_and_columns_that_are_not_there(tmp_path):
    write(tmp_path / "a.parquet", [{"img": picture(0), "n": 1}])
    path = str(tmp_path / "a.parquet")
    (shard,) = find_items([path])
    assert shard.source == ParquetFile(path, "img", None)
    assert [item.caption for item, _ in read([shard])] == [None]
    for columns, name in ((Columns("x"), "x"), (Columns(caption="y"), "y"), (Columns(id="z"), "z")):
        with pytest.raises(ValueError, match=f"a.parquet has no column '{name}'; its .* img, n$"):
            find_items([path], columns)


def test_images_beside_the_file(tmp_path):
    """Rows as `datasets` leaves them where it does not embed files: the path alone."""
    outside = tmp_path / "outside.jpg"
    outside.write_bytes(picture(1))
    (tmp_path / "data" / "in").mkdir(parents=True)
    (tmp_path / "data" / "in" / "0.jpg").write_bytes(picture(0))
    (tmp_path / "data" / "link.jpg").symlink_to(outside)
    inside = str(tmp_path / "data" / "in" / "0.jpg")
    paths = ["in/0.jpg", inside, "../outside.jpg", str(outside), "link.jpg", "in/lost.jpg", None]
    rows = [{"image": {"bytes": None, "path": path}, "caption": "x"} for path in paths]
    write(tmp_path / "data" / "a.parquet", rows)
    examples = Parquet(str(tmp_path / "data" / "a.parquet")).open()
    assert examples[0]["image"] == examples[1]["image"] == picture(0)
    for i in (2, 3, 4):
        with pytest.raises(ExampleError, match=rf"a.parquet:{i}: its image is in .*, outside the"):
            examples[i]
    with pytest.raises(ExampleError, match=r"a.parquet:5: /.*lost.jpg: no such file"):
        examples[5]
    with pytest.raises(ExampleError, match="a.parquet:6: its image has no bytes"):
        examples[6]


def test_damaged_files(tmp_path):
    """A damaged row group gives items with errors; a file without a footer is one."""
    for name in ("a", "b", "c"):
        write(tmp_path / f"{name}.parquet", rows_of(0, 8))
    data = (tmp_path / "b.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(data[:9] + bytes(2000) + data[2009:])
    (tmp_path / "c.parquet").write_bytes(b"PAR1 but no more")
    items = [item for item, _ in read(find_items([str(tmp_path)]))]
    errors = [item.error and item.error.partition(" (")[0] for item in items]
    damaged = [f"{tmp_path}/b.parquet:{i}: its row group 0 is damaged" for i in range(4)]
    whole = [None] * 4
    assert errors[:16] == [*whole, *whole, *damaged, *whole]
    assert "c.parquet is not a whole Parquet file" in errors[16] and len(items) == 17


def upload(cloud, folder) -> str:
    for path in folder.rglob("*"):
        if path.is_file():
            cloud.put(str(path.relative_to(folder)), path.read_bytes())
    return f"{cloud.scheme}://bucket"


def test_files_in_a_store(cloud, tmp_path):
    """Parquet without a manifest, tars with one; the same items as of the local files."""
    write(tmp_path / "l" / "p" / "a.parquet", rows_of(0, 9))
    write(tmp_path / "l" / "p" / "b.parquet", rows_of(9, 5))
    write_tars(tmp_path / "l" / "t", 5, 3)
    address = upload(cloud, tmp_path / "l")
    with pytest.raises(ValueError, match="has no manifest, without which tars in a store are not"):
        find_items([f"{address}/t/*.tar"])
    index(f"{address}/t/*.tar")
    for pattern in ("p/*.parquet", "t/*.tar"):
        shards = find_items([f"{address}/{pattern}"])
        local = sorted(
            (x[0].content, x[0].caption) for x in read(find_items([f"{tmp_path}/l/{pattern}"]))
        )
        stored = read(shards, batch_size=3)
        assert sorted((x.content, x.caption) for x, _ in stored) == local
        assert all(x.id.startswith(address) and x.error is None for x, _ in stored)
        before = [x.fingerprint for x in shards]
        assert before == [x.fingerprint for x in find_items([f"{address}/{pattern}"])]
    shards = find_items([f"{address}/p/*.parquet"])
    before = [x.fingerprint for x in shards]
    cloud.put("p/a.parquet", (tmp_path / "l" / "p" / "b.parquet").read_bytes())
    after = [x.fingerprint for x in find_items([f"{address}/p/*.parquet"])]
    assert before[0] != after[0] and before[1] == after[1]
