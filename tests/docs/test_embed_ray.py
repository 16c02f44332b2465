"""The example for Ray, with real Ray: it gives what the commands give."""

import io
import runpy
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ray = pytest.importorskip("ray", reason="needs the dependency group `search`")
pytest.importorskip("pyarrow")

import pyarrow as pa  # noqa: E402
from pyarrow import parquet  # noqa: E402

from siglip2_jax.cli import main  # noqa: E402
from siglip2_jax.inference.shards import read_shards  # noqa: E402
from siglip2_jax.testing import tiny_embedder  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
EXAMPLE = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "examples" / "embed_ray.py"))
IMAGES = 10


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny"
    tiny_embedder().save(path, "hf")
    return str(path)


def encoded(i):
    pixels = np.random.default_rng(i).integers(0, 256, (20 + 9 * i, 90 - 4 * i, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    """Three tars of a few images with captions."""
    directory = tmp_path_factory.mktemp("tars")
    for number, images in enumerate(np.array_split(range(IMAGES), 3)):
        with tarfile.open(directory / f"{number}.tar", "w") as tar:
            for i in images.tolist():
                for suffix, data in (("png", encoded(i)), ("txt", f"image {i}".encode())):
                    member = tarfile.TarInfo(f"{i:03d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return f"{directory}/*.tar"


def embed(model, images, out, *options):
    assert main(["embed", model, "--images", images, "--out", str(out), *options]) == 0
    assert main(["embed", "--merge", "--out", str(out)]) == 0
    return read_shards(out)


def test_rows(model, tmp_path):
    images = [{"bytes": encoded(i), "path": f"{i}.png"} for i in range(IMAGES)]
    table = pa.table({"image": images, "name": [f"image {i}" for i in range(IMAGES)]})
    parquet.write_table(table, tmp_path / "train.parquet", row_group_size=4)
    EXAMPLE["embed_rows"](model, str(tmp_path / "train.parquet"), str(tmp_path / "rows"))
    rows = parquet.read_table(tmp_path / "rows").sort_by("name").to_pydict()
    assert rows.keys() == {"name", "embedding"} and rows["name"] == table["name"].to_pylist()
    shards = embed(model, str(tmp_path / "train.parquet"), tmp_path / "out", "--float32")
    np.testing.assert_allclose(np.array(rows["embedding"]), shards.embeddings(), atol=1e-6)


def test_shards(model, tars, tmp_path, capsys):
    for _ in range(2):  # the second time all is there
        EXAMPLE["embed_shards"](model, tars, str(tmp_path / "ray"))
    alone = embed(model, tars, tmp_path / "out", "--workers", "0")
    found = read_shards(tmp_path / "ray")
    assert found.settings == alone.settings and len(found) == len(alone) == IMAGES
    for block, same in zip(found.blocks(), alone.blocks(), strict=True):
        assert block.items.equals(same.items)
        np.testing.assert_array_equal(block.embeddings, same.embeddings)


def test_packing(tars, tmp_path, capsys):
    EXAMPLE["pack_tars"](tars, str(tmp_path / "ray"), 2, shard_size=4)
    assert capsys.readouterr().out.split()[-1] == str(IMAGES)
    out = tmp_path / "out"
    assert main(["data", "pack", "--tars", tars, "--out", str(out), "--shard-size", "4"]) == 0
    files = sorted(out.glob("*.arrayrecord"))
    assert len(files) == 3
    for file in files:
        assert (tmp_path / "ray" / file.name).read_bytes() == file.read_bytes()
