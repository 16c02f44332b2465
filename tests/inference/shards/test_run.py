"""Embeddings of shards: the rows of the API, made once, by whichever process, in whole files."""

import dataclasses
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

pq = pytest.importorskip("pyarrow.parquet")

from inference.shards.shard_inputs import (  # noqa: E402
    BROKEN,
    EXAMPLES,
    IMAGES,
    OPTIONS,
    SOURCE,
    Source,
    content,
    good,
    shards,
)

from siglip2_jax.data.items.item import Columns, Shard  # noqa: E402
from siglip2_jax.inference.embedder import Embedder  # noqa: E402
from siglip2_jax.inference.shards import Options, batches, embed_shards  # noqa: E402
from siglip2_jax.preprocess.decode import ImageError  # noqa: E402
from siglip2_jax.testing import TINY_FIXED, tiny_embedder  # noqa: E402

pytestmark = pytest.mark.search
SIZES = 5, 0, 6  # the last batch of a shard is short, and one shard is empty


@pytest.fixture(scope="module")
def model():
    return tiny_embedder()


def embed(model, out, sizes=SIZES, shard=(0, 1), **options):
    return embed_shards(model, shards(*sizes), out, Options(**OPTIONS | options), shard=shard)


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "shards").iterdir())}


def rows(out: Path) -> list[dict]:
    return [row for name in files(out) for row in pq.read_table(out / "shards" / name).to_pylist()]


def expected(model, dtype=np.float32) -> np.ndarray:
    """Embeddings by the API, an image at a time."""
    images = [EXAMPLES[i]["image"] for i in good()]
    return model.embed_images(images, max_num_patches=16, batch_size=1).astype(dtype)


def test_patches_of_a_bfloat16_model_travel_in_bfloat16(monkeypatch, tmp_path):
    """The rows are those that float32 gives, bit for bit: the model rounds patches before all."""
    model, dtypes = tiny_embedder(), []
    model = Embedder(model.config, model.params, model.preprocess, dtype="bfloat16")

    def place(patches, mesh):
        dtypes.append(str(patches.pixels.dtype))
        return unchanged(dataclasses.replace(patches, pixels=patches.pixels.astype(sent)), mesh)

    unchanged = batches.place
    monkeypatch.setattr(batches, "place", place)
    for sent in ("bfloat16", "float32"):
        embed(model, tmp_path / sent, embedding="float32")
    assert set(dtypes) == {"bfloat16"}
    assert files(tmp_path / "bfloat16") == files(tmp_path / "float32")


@pytest.mark.parametrize("numbers", ["float16", "float32"])
def test_rows_are_those_of_the_api(model, tmp_path, numbers):
    columns = Columns(fields=("label", "score", "none"))
    types = {"label": "int64", "score": "float64"}
    summary = embed(model, tmp_path, embedding=numbers, columns=columns, types=types)
    assert (summary.shards, summary.skipped) == (3, 0)
    assert (summary.images, summary.errors) == (IMAGES, 1)
    found = rows(tmp_path)
    assert [row["id"] for row in found] == [example["name"] for example in EXAMPLES]
    assert [row["content"] for row in found] == [content(i) for i in range(IMAGES)]
    assert [row["label"] for row in found] == list(range(IMAGES))
    assert [row["score"] for row in found] == [i / 4 for i in range(IMAGES)]
    assert {row["none"] for row in found} == {None}
    assert [row["caption"] for row in found] == [
        f"image {i}" if i % 2 else None for i in range(IMAGES)
    ]
    sizes = [(40 - 3 * i, 8 + 3 * i) for i in range(IMAGES)]
    sizes[BROKEN] = (None, None)
    assert [(row["width"], row["height"]) for row in found] == sizes
    broken = found.pop(BROKEN)
    assert broken["embedding"] is None and "not an image" in broken["error"]
    assert broken["error"].startswith(f"example {BROKEN}")
    assert {row["error"] for row in found} == {None}
    embeddings = np.array([row["embedding"] for row in found])
    tolerance = 2**-12 if numbers == "float16" else 1e-6
    np.testing.assert_allclose(embeddings, expected(model), atol=tolerance)
    schema = pq.read_schema(tmp_path / "shards" / "000001-memory.parquet")
    assert str(schema.field("embedding").type) in (
        "fixed_size_list<element: halffloat>[24]",
        "fixed_size_list<element: float>[24]",
    )
    assert str(schema.field("label").type) == "int64"
    assert not list(tmp_path.rglob("*.tmp"))


def test_shares_make_the_same_files_rows_as_one_process(model, tmp_path):
    sizes = 2, 3, 1, 2, 3
    embed(model, tmp_path / "whole", sizes)
    for i in (2, 0, 1):
        summary = embed(model, tmp_path / "shares", sizes, shard=(i, 3))
        assert summary.shards == len(range(i, 5, 3))
    assert rows(tmp_path / "shares") == rows(tmp_path / "whole")
    assert len(files(tmp_path / "shares")) == 5


def test_what_is_there_is_not_made_again(model, tmp_path, monkeypatch):
    embed(model, tmp_path)
    before = files(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(batches, "run_batch", None)
        summary = embed(model, tmp_path)
    assert (summary.skipped, summary.images) == (3, 0)
    path = tmp_path / "shards" / "000002-memory.parquet"
    for damage in (before[path.name][:-1], b"", b"PAR1 and PAR1", before["000000-memory.parquet"]):
        path.write_bytes(damage)
        assert embed(model, tmp_path).skipped == 2
        assert files(tmp_path) == before


def test_an_input_that_has_changed_is_embedded_again_alone(model, tmp_path):
    embed(model, tmp_path, (5, 6))
    other = Source(EXAMPLES[:-1] + ({**EXAMPLES[-1], "image": EXAMPLES[0]["image"]},))
    inputs = [shards(5)[0], Shard("000001-memory", other, 5, 11)]
    summary = embed_shards(model, inputs, tmp_path, Options(**OPTIONS))
    assert (summary.skipped, summary.images) == (1, 6)
    assert rows(tmp_path)[-1]["content"] == content(0)


def test_the_last_images_of_a_broken_run_are_lost_and_no_more(model, tmp_path, monkeypatch):
    sizes = 5, 0, 5, 1
    embed(model, tmp_path / "whole", sizes)
    calls, original = [], batches.run_batch

    def last(*args):
        calls.append(args)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(batches, "run_batch", last)
    with pytest.raises(KeyboardInterrupt):
        embed(model, tmp_path / "out", sizes)
    assert list(files(tmp_path / "out")) == ["000000-memory.parquet", "000001-memory.parquet"]
    assert embed(model, tmp_path / "out", sizes).skipped == 2
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_batch_is_on_the_device_before_the_rows_of_the_last_are_taken(
    model, tmp_path, monkeypatch
):
    """Across shards, too: the device never waits for a file to be written."""
    events, start, take = [], batches.run_batch, batches._taken

    def starting(*args):
        events.append("start")
        return start(*args)

    def taking(*args):
        events.append("take")
        return take(*args)

    monkeypatch.setattr(batches, "run_batch", starting)
    monkeypatch.setattr(batches, "_taken", taking)
    embed(model, tmp_path, (5, 6))
    assert events == ["start", "start", "take", "start", "take", "start", "take", "take"]


def test_other_settings_are_refused(model, tmp_path):
    embed(model, tmp_path)
    before = files(tmp_path)
    for options, message in (
        ({"max_num_patches": 9}, r"patches 16 \(now 9\)"),
        ({"embedding": "float32"}, r"embedding 'float16' \(now 'float32'\)"),
        ({"batch_size": 3}, r"batch_size 4 \(now 3\)"),
        ({"columns": Columns(fields=("label",))}, r"fields \{\} \(now \{'label': 'string'\}\)"),
        ({"scaled_decode": True}, r"scaled_decode False \(now True\)"),
        ({"sizes": (5, 6)}, r"shards 3 \(now 2\)"),
    ):
        with pytest.raises(ValueError, match=message) as raised:
            embed(model, tmp_path, **options)
        assert "give another --out" in str(raised.value)
    with pytest.raises(ValueError, match="made with weights"):
        embed(tiny_embedder(seed=1), tmp_path)
    renamed = [dataclasses.replace(shard, name=f"x{shard.name}") for shard in shards(*SIZES)]
    with pytest.raises(ValueError, match="made with names"):
        embed_shards(model, renamed, tmp_path, Options(**OPTIONS))
    assert files(tmp_path) == before
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["weights"] == model.identity()["weights"] and manifest["jax"] == jax.__version__
    assert manifest["text_norm"] == "reference" and manifest["preproc"] == "reference"


def test_a_strict_run_stops_at_an_error(model, tmp_path):
    with pytest.raises(ImageError, match=f"example {BROKEN}"):
        embed(model, tmp_path, strict=True)
    assert files(tmp_path) == {}


def test_several_devices_give_the_rows_of_one(tmp_path):
    model = tiny_embedder()
    embed(model, tmp_path / "one", batch_size=2, embedding="float32")
    model.replicate_over(jax.devices())
    assert model.mesh.size == 8
    embed(model, tmp_path / "eight", batch_size=2, embedding="float32")
    one, eight = (
        np.array([row["embedding"] for row in rows(tmp_path / name) if row["embedding"]])
        for name in ("one", "eight")
    )
    np.testing.assert_allclose(eight, one, atol=1e-6)
    manifest = json.loads((tmp_path / "eight" / "manifest.json").read_text())
    assert manifest["batch_size"] == 16 and manifest["devices"] == "8 x cpu"


def test_fixed_resolution_ignores_the_budget(tmp_path):
    model = tiny_embedder(TINY_FIXED)
    embed(model, tmp_path)
    embed(model, tmp_path, max_num_patches=1000)
    assert json.loads((tmp_path / "manifest.json").read_text())["patches"] == 16
    found = [row["embedding"] for row in rows(tmp_path) if row["embedding"]]
    np.testing.assert_allclose(np.array(found), expected(model), atol=2**-12)


@pytest.mark.slow
def test_worker_processes_give_the_same(model, tmp_path):
    embed(model, tmp_path / "threads")
    embed(model, tmp_path / "processes", workers=1)
    assert files(tmp_path / "processes") == files(tmp_path / "threads")


def test_fields_are_kept_in_their_types(model, tmp_path):
    values = ("é\udce9", 7, True, None, [1, "x"], {"a": 1}, np.float32(0.5))
    examples = tuple({**EXAMPLES[0], "x": value} for value in values)
    inputs = [Shard("000000-x", Source(examples))]

    def kept(kind):
        out = tmp_path / kind
        options = Options(**OPTIONS, columns=Columns(fields=("x",)), types={"x": kind})
        embed_shards(model, inputs, out, options)
        return [row["x"] for row in rows(out)]

    assert kept("string") == ["é\\udce9", "7", "true", None, '[1, "x"]', '{"a": 1}', "0.5"]
    with pytest.raises(ValueError, match=r"column 'x' holds 'é.*expected int64; keep it as text"):
        kept("int64")
    for kind, good_values, bad in (
        ("int64", {"7": 7, 8: 8, 9.0: 9}, 0.5),
        ("double", {"0.25": 0.25, 3: 3.0}, "a"),
        ("bool", {"true": True, "False": False, 1: True}, "yes?"),
    ):
        kind = "float64" if kind == "double" else kind
        examples = tuple({**EXAMPLES[0], "x": value} for value in good_values)
        inputs = [Shard("000000-x", Source(examples))]
        (tmp_path / kind).exists() and os.rename(tmp_path / kind, tmp_path / f"{kind} before")
        assert kept(kind) == list(good_values.values())
        inputs = [Shard("000000-x", Source(({**EXAMPLES[0], "x": bad},)))]
        with pytest.raises(ValueError, match="column 'x' holds"):
            kept(kind)


def test_what_cannot_work_is_said(model, tmp_path):
    with pytest.raises(ValueError, match="nothing to embed"):
        embed(model, tmp_path, ())
    with pytest.raises(ValueError, match="neither a local directory nor on gs://"):
        embed(model, "s3://bucket/out")
    with pytest.raises(ValueError, match="float16 or float32, got 'int8'"):
        Options(embedding="int8")
    with pytest.raises(ValueError, match="'width', which every file of embeddings has already"):
        Options(columns=Columns(fields=("width",)))
    with pytest.raises(ValueError, match="type 'date'; expected string, int64, float64, bool"):
        Options(columns=Columns(fields=("a",)), types={"a": "date"})
    assert SOURCE and not list(tmp_path.iterdir())


def test_a_store(model, tmp_path, store):
    embed(model, tmp_path / "local")
    embed(model, "gs://bucket/out", shard=(0, 2))
    summary = embed(model, "gs://bucket/out")
    assert summary.skipped == 2
    written = tmp_path / "store" / "bucket" / "out"
    names = sorted(path.name for path in (written / "shards").iterdir())
    assert names == list(files(tmp_path / "local"))
