"""The end of a run over shards: nothing incomplete is taken for whole, and readers see each row."""

import json

import numpy as np
import pytest

pq = pytest.importorskip("pyarrow.parquet")

from inference.shards.shard_inputs import BROKEN, EXAMPLES, IMAGES, OPTIONS, good, shards  # noqa: E402

from siglip2_jax.data.items.item import Columns  # noqa: E402
from siglip2_jax.inference.shards import (  # noqa: E402
    Options,
    embed_shards,
    merge,
    read_shards,
)
from siglip2_jax.inference.shards import write as write_module  # noqa: E402
from siglip2_jax.testing import tiny_embedder  # noqa: E402

pytestmark = pytest.mark.search
COLUMNS = Columns(fields=("label",))


def embed(out, shard=(0, 1), sizes=(5, 0, 6)):
    options = Options(**OPTIONS, columns=COLUMNS)
    return embed_shards(tiny_embedder(), shards(*sizes), out, options, shard=shard)


def test_a_run_is_whole_once_every_shard_is_there(tmp_path):
    with pytest.raises(ValueError, match=r"holds no manifest.json of `siglip2 embed --out DIR`"):
        merge(tmp_path)
    embed(tmp_path, (0, 2))
    with pytest.raises(ValueError, match=r"lacks 1 of 3 shards \(1\)"):
        merge(tmp_path)
    with pytest.raises(ValueError, match="not known to be complete; run `siglip2 embed --merge"):
        read_shards(tmp_path)
    embed(tmp_path, (1, 2))
    left = tmp_path / "shards" / "000001-memory.parquet.0a1b.tmp"
    left.write_bytes(b"PAR1")
    merged = merge(tmp_path)
    assert (merged.images, merged.errors) == (IMAGES, 1)
    assert list(merged.files.items()) == [
        ("000000-memory.parquet", 5),
        ("000001-memory.parquet", 0),
        ("000002-memory.parquet", 6),
    ]
    assert not left.exists()
    assert merge(tmp_path) == merged


def test_damage_and_files_of_other_runs_are_not_whole(tmp_path):
    embed(tmp_path / "out")
    path = tmp_path / "out" / "shards" / "000002-memory.parquet"
    whole = path.read_bytes()
    embed(tmp_path / "other", sizes=(5, 6))
    other = (tmp_path / "other" / "shards" / "000001-memory.parquet").read_bytes()
    table = pq.read_table(path)
    pq.write_table(table, tmp_path / "foreign.parquet")
    for content in (whole[:-1], b"", other, (tmp_path / "foreign.parquet").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"lacks 1 of 3 shards \(2\), or their files are dam"):
            merge(tmp_path / "out")
    embed(tmp_path / "out")
    assert merge(tmp_path / "out").images == IMAGES


def test_many_missing_shards_are_listed_in_short(tmp_path):
    embed(tmp_path, (0, 20), (1,) * 11)
    with pytest.raises(ValueError, match=r"lacks 10 of 11 shards \(1, 2, .*, 10\), or"):
        merge(tmp_path)
    embed(tmp_path / "more", (0, 20), (1,) * 8 + (0,) * 5)
    with pytest.raises(ValueError, match=r"lacks 12 of 13 shards \(1, .*, 10, …\), or"):
        merge(tmp_path / "more")


def test_a_run_that_goes_on_is_not_complete(tmp_path):
    embed(tmp_path)
    merge(tmp_path)
    embed(tmp_path)
    assert (tmp_path / "merged.json").exists()  # nothing was left to do
    (tmp_path / "shards" / "000000-memory.parquet").unlink()
    embed(tmp_path, (1, 2))
    assert (tmp_path / "merged.json").exists()
    embed(tmp_path)
    assert not (tmp_path / "merged.json").exists()


def test_every_embedding_is_read_with_its_item(tmp_path, monkeypatch):
    """Row groups are smaller than a shard."""
    monkeypatch.setattr(write_module, "_GROUP", 2)
    embed(tmp_path)
    merge(tmp_path)
    shards = read_shards(tmp_path)
    assert (len(shards), shards.images, shards.errors) == (IMAGES - 1, IMAGES, 1)
    assert shards.width == 24 and shards.dtype == np.float16 and shards.fields == ("label",)
    model = tiny_embedder()
    images = [EXAMPLES[i]["image"] for i in good()]
    expected = model.embed_images(images, max_num_patches=16)
    np.testing.assert_allclose(shards.embeddings(), expected, atol=2**-12)
    blocks = list(shards.blocks())
    assert len(blocks) > 2
    np.testing.assert_array_equal(
        np.concatenate([x.embeddings for x in blocks]), shards.embeddings()
    )
    assert [x for block in blocks for x in block.items["label"].to_pylist()] == list(
        map(str, good())
    )
    assert [x for block in shards.blocks(["id"]) for x in block.items["id"].to_pylist()] == [
        EXAMPLES[i]["name"] for i in good()
    ]
    assert sum(len(table) for table in shards.tables(["id"])) == IMAGES
    (line,) = shards.error_lines()
    assert line["id"] == f"example {BROKEN}" and "not an image" in line["error"]


def test_a_run_without_any_embedding_is_read(tmp_path):
    options = Options(**OPTIONS)
    embed_shards(tiny_embedder(), shards(BROKEN, 1)[1:], tmp_path, options)
    assert merge(tmp_path).errors == 1
    assert read_shards(tmp_path).embeddings().shape == (0, 24)


def test_records_that_are_damaged_are_told(tmp_path):
    embed(tmp_path)
    merge(tmp_path)
    record = json.loads((tmp_path / "merged.json").read_text())
    for text in ("{", "[]", "{}", json.dumps(record | {"settings": "x"})):
        (tmp_path / "merged.json").write_text(text)
        with pytest.raises(
            ValueError, match=r"merged.json is damaged .*; run `siglip2 embed --mer"
        ):
            read_shards(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="manifest.json is damaged"):
        merge(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": "another"}')
    with pytest.raises(ValueError, match="holds no manifest.json"):
        merge(tmp_path)
