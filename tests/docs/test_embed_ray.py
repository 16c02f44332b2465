"""The example for Ray, with real Ray: it gives what the commands give."""

import io
import os
import secrets
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("ray", reason="needs the dependency group `search`")
pytest.importorskip("pyarrow")

import pyarrow as pa  # noqa: E402
from pyarrow import parquet  # noqa: E402

from siglip2_jax.cli import main  # noqa: E402
from siglip2_jax.inference.shards import read_shards  # noqa: E402
from siglip2_jax.testing import tiny_embedder  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.slow]
EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "embed_ray.py"
IMAGES = 10


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


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A Parquet file of the same images."""
    rows = [{"bytes": encoded(i), "path": f"{i}.png"} for i in range(IMAGES)]
    table = pa.table({"image": rows, "name": [f"image {i}" for i in range(IMAGES)]})
    path = tmp_path_factory.mktemp("parquet") / "train.parquet"
    parquet.write_table(table, path, row_group_size=4)
    return str(path)


@pytest.fixture(scope="module")
def out(model, images, tars, tmp_path_factory):
    """Output of the example, on one cluster of this machine that leaves nothing else behind."""
    out = tmp_path_factory.mktemp("ray")
    calls = [
        ("embed_rows", model, images, str(out / "rows")),
        ("embed_shards", model, tars, str(out / "shards")),
        ("pack_tars", tars, str(out / "packed"), "2", "4"),
    ]
    code = f"import runpy; example = runpy.run_path({str(EXAMPLE)!r})\n"
    code += "".join(f"example[{name!r}](*{arguments!r})\n" for name, *arguments in calls)
    with tempfile.TemporaryDirectory() as directory:  # short, as names of sockets must be
        settings = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_TMPDIR": directory,
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | settings)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == str(IMAGES)  # examples packed
    return out


def embed(model, images, out, *options):
    """Output of the command."""
    assert main(["embed", model, "--images", images, "--out", str(out), *options]) == 0
    assert main(["embed", "--merge", "--out", str(out)]) == 0
    return read_shards(out)


def test_rows(out, model, images, tmp_path):
    rows = parquet.read_table(out / "rows").sort_by("name").to_pydict()
    assert rows.keys() == {"name", "embedding"}
    assert rows["name"] == [f"image {i}" for i in range(IMAGES)]
    shards = embed(model, images, tmp_path / "out", "--float32")
    np.testing.assert_allclose(np.array(rows["embedding"]), shards.embeddings(), atol=1e-6)


def test_shards(out, model, tars, tmp_path):
    alone = embed(model, tars, tmp_path / "out", "--workers", "0")
    found = read_shards(out / "shards")
    assert found.settings == alone.settings and len(found) == len(alone) == IMAGES
    for block, same in zip(found.blocks(), alone.blocks(), strict=True):
        assert block.items.equals(same.items)
        np.testing.assert_array_equal(block.embeddings, same.embeddings)


def test_packing(out, tars, tmp_path):
    command = ["data", "pack", "--tars", tars, "--out", str(tmp_path), "--shard-size", "4"]
    assert main(command) == 0
    files = sorted(tmp_path.glob("*.arrayrecord"))
    assert len(files) == 3
    for file in files:
        assert (out / "packed" / file.name).read_bytes() == file.read_bytes()
