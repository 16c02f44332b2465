"""Packs read back equal, continue after a stop, and say what was left out."""

import json
from dataclasses import replace

import pytest
from data.samples import example, picture

from siglip2_jax.data.records import Records
from siglip2_jax.data.sources import Folder, Memory
from siglip2_jax.data.tools import pack as pack_module
from siglip2_jax.data.tools.pack import Summary, pack

GOOD = [example(i) for i in range(11)]
BROKEN = {
    2: {**GOOD[2], "captions": ()},
    5: {**GOOD[5], "image": b"not an image"},
    9: {**GOOD[9], "image": picture(9)[:250]},
}
SOURCE = Memory(tuple(BROKEN.get(i, item) for i, item in enumerate(GOOD)))
KEPT = [item for i, item in enumerate(GOOD) if i not in BROKEN]


def read(path):
    examples = Records(str(path)).open()
    return [examples[i] for i in range(len(examples))]


def errors(path):
    return [json.loads(line) for line in (path / "examples.errors.jsonl").read_text().splitlines()]


def test_pack(tmp_path):
    done = []
    summary = pack(SOURCE, tmp_path / "p", shard_size=4, progress=lambda *n: done.append(n))
    names = [f"examples-0000{i}-of-00003.arrayrecord" for i in range(3)]
    shards = sorted((tmp_path / "p").glob("*.arrayrecord"))
    assert [shard.name for shard in shards] == names
    size = sum(shard.stat().st_size for shard in shards)
    assert summary == Summary(examples=8, skipped=3, shards=3, written=3, bytes=size)
    assert read(tmp_path / "p") == KEPT
    assert done == [(i + 1, 11) for i in range(11)]
    found = errors(tmp_path / "p")
    assert [row["index"] for row in found] == [2, 5, 9]
    assert [row["name"] for row in found] == ["no 2", "no 5", "no 9"]
    assert "no caption" in found[0]["error"] and "not an image file" in found[1]["error"]
    before = {path: path.stat().st_mtime_ns for path in shards}
    assert pack(SOURCE, tmp_path / "p", shard_size=4) == replace(summary, written=0)
    assert {path: path.stat().st_mtime_ns for path in shards} == before
    assert len(errors(tmp_path / "p")) == 3


@pytest.mark.parametrize("stop", [0, 3, 5, 10])
def test_an_interrupted_pack_continues(tmp_path, monkeypatch, stop):
    class Stopped(Exception):
        pass

    def progress(done, total):
        if done == stop + 1:
            raise Stopped

    with pytest.raises(Stopped):
        pack(SOURCE, tmp_path, shard_size=4, progress=progress)
    # A stop between the errors of a shard and its renaming.
    shard = f"examples-{stop // 4:05d}-of-00003.arrayrecord"
    with (tmp_path / "examples.errors.jsonl").open("a") as file:
        file.write(json.dumps({"shard": shard, "index": 99, "name": "?", "error": "?"}) + "\n")
    with monkeypatch.context() as patch:
        writes = []
        write = pack_module._write
        patch.setattr(pack_module, "_write", lambda *a: writes.append(a[1].start) or write(*a))
        summary = pack(SOURCE, tmp_path, shard_size=4)
    assert writes == [0, 4, 8][stop // 4 :]
    assert summary.written == len(writes) and (summary.examples, summary.skipped) == (8, 3)
    assert read(tmp_path) == KEPT
    assert [row["index"] for row in errors(tmp_path)] == [2, 5, 9]
    assert not list(tmp_path.glob("*.tmp"))


def test_another_source_is_refused(tmp_path):
    pack(SOURCE, tmp_path, shard_size=4)
    with pytest.raises(ValueError, match=r"made with source 'Memory\(11 examples"):
        pack(Memory(tuple(GOOD)), tmp_path, shard_size=4)
    with pytest.raises(ValueError, match=r"made with shard_size 4 \(now 5\)"):
        pack(SOURCE, tmp_path, shard_size=5)
    assert pack(Memory(tuple(GOOD)), tmp_path, shard_size=4, name="other").skipped == 0


def test_nothing_to_pack(tmp_path):
    with pytest.raises(ValueError, match="none of 3 examples could be packed"):
        pack(Memory(tuple(BROKEN.values())), tmp_path)
    with pytest.raises(ValueError, match="shard_size must be at least 1"):
        pack(SOURCE, tmp_path, shard_size=0)


def test_a_folder_packs_with_its_fields(tmp_path, shared):
    source = Folder(str(shared / "data/flickr8k_1k"), where=(("split", "val"),))
    summary = pack(source, tmp_path)
    examples = source.open()
    assert summary.skipped == 0 and summary.examples == len(examples)
    assert read(tmp_path) == [examples[i] for i in range(len(examples))]
