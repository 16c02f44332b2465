"""`siglip2 embed --out DIR`: many processes, one directory."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow")

from siglip2_jax import load  # noqa: E402
from siglip2_jax.inference.shards import read_shards  # noqa: E402

pytestmark = pytest.mark.search
SMALL = ("--batch-size", 4, "--max-num-patches", 16)
NAMES = "a.png b.jpg c.JPG d.webp deeper/h.png e.bmp f.tif g.gif".split()


@pytest.fixture
def embed(siglip2, model_dir, photos, tmp_path):
    def run(*args, images=(photos,), out="out", source=model_dir):
        return siglip2("embed", source, "--images", *images, "--out", tmp_path / out, *SMALL, *args)

    return run


def test_rows_are_those_of_the_api(embed, siglip2, model_dir, photos, tmp_path):
    (photos / "broken.png").write_bytes(b"no image")
    result = embed("--json", "--float32")
    assert result.code == 0, result.err
    summary = json.loads(result.out)
    assert (summary["shards"], summary["skipped"]) == (1, 0)
    assert (summary["images"], summary["errors"]) == (9, 1)
    assert summary["images_per_second"] > 0 and 0 <= summary["data_wait"] <= 1
    merged = siglip2("embed", "--merge", "--out", tmp_path / "out", "--json")
    assert merged.code == 0, merged.err
    assert json.loads(merged.out) == {
        "out": str(tmp_path / "out"), "images": 9, "errors": 1, "files": 1
    }  # fmt: skip
    shards = read_shards(tmp_path / "out")
    items = [str(photos / name) for name in NAMES]
    assert [x for block in shards.blocks(["id"]) for x in block.items["id"].to_pylist()] == items
    expected = load(model_dir).embed_images(items, max_num_patches=16, batch_size=4)
    np.testing.assert_allclose(shards.embeddings(), expected, atol=1e-6)
    (line,) = shards.error_lines()
    assert line["id"] == str(photos / "broken.png")
    assert "9 images, 1 without" in embed("--float32", "--shard", "0/1", out="text").out


def test_shares_of_several_processes(embed, siglip2, photos, tmp_path):
    tar = tmp_path / "more.tar"
    with tarfile.open(tar, "w") as file:
        for i, name in enumerate(NAMES):
            image = (photos / name).read_bytes()
            for suffix, data in (
                (Path(name).suffix.lower(), image),
                (".txt", f"a {name}".encode()),
                (".json", b'{"score": 0.5}'),
            ):
                member = tarfile.TarInfo(f"{i:03d}{suffix}")
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))
    images = (photos, tar)
    columns = ("--columns", "score:float64")
    assert "wrote 1 of 1 shards" in embed(*columns, "--shard", "1/2", images=images).out
    refused = siglip2("embed", "--out", tmp_path / "out", "--merge")
    assert refused.code == 2 and "lacks 1 of 2 shards (0)" in refused.err
    assert len(refused.err.splitlines()) == 1
    result = embed(*columns, "--json", images=images)
    assert json.loads(result.out)["skipped"] == 1, result.err
    assert siglip2("embed", "--merge", "--out", tmp_path / "out").code == 0
    shards = read_shards(tmp_path / "out")
    (first, second) = shards.blocks()
    assert first.items["caption"].to_pylist() == [None] * 8
    assert second.items["caption"].to_pylist() == [f"a {name}" for name in NAMES]
    assert second.items["score"].to_pylist() == [0.5] * 8
    np.testing.assert_array_equal(first.embeddings, second.embeddings)


def test_what_does_not_go_together_is_said(embed, siglip2, model_dir, photos, tmp_path, capsys):
    for args, out, message in (
        (("--overwrite",), "out", "--overwrite is for a single file"),
        (("--shard", "0/2"), "out.npz", "--shard is for a directory of Parquet files"),
        (("--columns", "a"), "out.npz", "--columns is for a directory"),
        (("--scaled-decode",), "out.npz", "--scaled-decode is for a directory"),
        ((), "out.csv", "ends in .npz, or for images a directory"),
    ):
        result = embed(*args, out=out)
        assert result.code == 2 and message in result.err
        assert len(result.err.splitlines()) == 1
    for args, message in (
        (("--columns", "a:date"), "has the type 'date'"),
        (("--columns", "id"), "which every file of embeddings has already"),
        (("--workers", "-1"), "neither a number of processes nor auto"),
    ):
        with pytest.raises(SystemExit):
            embed(*args)
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):  # without a model
        siglip2("embed", "--images", photos, "--out", tmp_path / "out")
    (tmp_path / "texts.txt").write_text("a dog\n")
    result = siglip2("embed", model_dir, "--texts", tmp_path / "texts.txt", "--out", tmp_path / "o")
    assert result.code == 2 and "ends in .npz" in result.err
    assert siglip2("embed", "--merge", "--out", tmp_path / "absent").code == 2


def test_a_strict_run_stops(embed, photos, tmp_path):
    (photos / "broken.png").write_bytes(b"no image")
    result = embed("--strict")
    assert result.code == 2 and "not an image" in result.err.splitlines()[-1]
    assert not list((tmp_path / "out" / "shards").iterdir())


def test_no_readable_image_is_a_failure(embed, siglip2, photos, tmp_path):
    (photos / "broken.png").write_bytes(b"")
    assert embed(images=(photos / "broken.png",)).code == 1
    assert siglip2("embed", "--merge", "--out", tmp_path / "out").code == 1
