"""Packs read back equal, continue after a stop, and say what was left out."""

import errno
import json
import shutil
import tarfile
from dataclasses import replace

import pytest
from data.faults import Failing
from data.samples import example, picture, write_tar

from siglip2_jax.data.example import SourceError
from siglip2_jax.data.records import Records
from siglip2_jax.data.sources import Folder, Memory
from siglip2_jax.data.stores.manifest_files import Shard
from siglip2_jax.data.tars import Tars
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


def test_every_bad_sample_has_its_name(tmp_path):
    """Also where it is the reading that fails, in every kind of source."""
    latin = "Müll".encode("latin-1")
    members = [("1.jpg", picture(1)), ("1.json", b"{"), ("2.jpg", picture(2)), ("2.txt", latin)]
    write_tar(tmp_path / "a.tar", [*members, ("3.jpg", picture(3)), ("3.txt", b"good")])
    assert pack(Tars(str(tmp_path)), tmp_path / "tars").skipped == 2
    rows = errors(tmp_path / "tars")
    assert [row["name"] for row in rows] == [f"{tmp_path}/a.tar:{key}" for key in (1, 2)]
    assert all(row["error"].startswith(row["name"] + ": ") for row in rows)
    assert "its .json is not JSON" in rows[0]["error"] and "UTF-8" in rows[1]["error"]

    images = tmp_path / "images"
    images.mkdir()
    (images / "a.jpg").write_bytes(picture(0))
    (images / "cut.jpg").write_bytes(picture(0)[:250])
    captions = [{"file": name, "caption": "x"} for name in ("a.jpg", "cut.jpg")]
    captions.append({"file": "a.jpg", "caption": 5})
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, captions)))
    assert pack(Folder(str(tmp_path)), tmp_path / "folder").skipped == 2
    assert [row["name"] for row in errors(tmp_path / "folder")] == [
        f"{images}/cut.jpg",
        f"{images}/a.jpg#2",
    ]
    assert pack(Unnamed(), tmp_path / "unnamed").skipped == 1
    (row,) = errors(tmp_path / "unnamed")
    assert (row["name"], row["error"]) == ("example 1", "example 1: broken")


def test_what_cannot_be_read_stops_the_pack(tmp_path):
    source = Failing(6, errno.EACCES, {3: 1})
    with pytest.raises(SourceError, match=r"^/mnt/3.jpg cannot be read \(Permission denied\)"):
        pack(source, tmp_path, shard_size=2)
    assert not (tmp_path / "examples.errors.jsonl").exists()
    assert pack(source, tmp_path, shard_size=2).written == 2
    assert read(tmp_path) == [example(i) for i in range(6)]


def test_what_the_source_left_out_is_counted(tmp_path):
    write_tar(tmp_path / "a.tar", [("1.jpg", picture(1)), ("1.txt", b"x"), ("2.txt", b"y")])
    summary = pack(Tars(str(tmp_path)), tmp_path / "out")
    assert (summary.examples, summary.skipped, summary.left_out) == (1, 0, 1)


class Unnamed:
    """A source of a user's own, whose errors do not say which example it was."""

    def open(self):
        return self

    def __len__(self):
        return 2

    def __getitem__(self, index):
        if index:
            raise ValueError("broken")
        return GOOD[0]


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


def tars(path):
    examples = Tars(str(path)).open()
    blocks = -(-len(examples) // examples.block_size)
    return [example for block in range(blocks) for example in examples.read_block(block)]


def contents(examples):
    """Examples without their names, which is all that tars keep."""
    return [{key: x for key, x in example.items() if key != "name"} for example in examples]


def test_tars_read_back_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(pack_module, "BLOCK_SIZE", 2)
    summary = pack(SOURCE, tmp_path / "p", kind="tar", shard_size=4)
    shards = sorted((tmp_path / "p").glob("*.tar"))
    assert [shard.name for shard in shards] == [f"examples-0000{i}-of-00003.tar" for i in range(3)]
    size = sum(shard.stat().st_size for shard in shards)
    assert summary == Summary(examples=8, skipped=3, shards=3, written=3, bytes=size)
    read = tars(tmp_path / "p")
    assert [row["index"] for row in errors(tmp_path / "p")] == [2, 5, 9]
    # Whole blocks of two first: 0 1, then 4 6, then 8 10; then what is left, 3 and 7.
    order = [0, 1, 4, 6, 8, 10, 3, 7]
    assert contents(read) == contents(GOOD[i] for i in order)
    assert [x["name"].rpartition(":")[2] for x in read] == [f"{i:09d}" for i in order]
    with tarfile.open(shards[0]) as tar:  # as img2dataset writes them
        assert tar.getnames()[:3] == ["000000000.jpg", "000000000.txt", "000000000.json"]
        assert tar.extractfile("000000000.txt").read() == b"picture 0 said in way 0"
    assert pack(SOURCE, tmp_path / "p", kind="tar", shard_size=4) == replace(summary, written=0)
    shutil.rmtree(tmp_path / "p" / "manifest")  # lost: they are written again
    assert pack(SOURCE, tmp_path / "p", kind="tar", shard_size=4) == summary
    shutil.copytree(tmp_path / "p", tmp_path / "copy")
    assert contents(tars(tmp_path / "copy")) == contents(read)


@pytest.mark.parametrize("kind", ["tar", "arrayrecord"])
def test_shares_make_the_same_pack(tmp_path, kind):
    whole = pack(SOURCE, tmp_path / "whole", kind=kind, shard_size=2)
    parts = [
        pack(SOURCE, tmp_path / "shared", kind=kind, shard_size=2, shard=Shard(number, 4))
        for number in (3, 0, 2, 1)
    ]
    assert sum(part.shards for part in parts) == whole.shards == 6
    assert sum(part.examples for part in parts) == whole.examples == 8
    assert sum(part.bytes for part in parts) == whole.bytes
    for path in (tmp_path / "whole").glob("*.[at]*r*"):
        assert (tmp_path / "shared" / path.name).read_bytes() == path.read_bytes()
    found = [row for path in (tmp_path / "shared").glob("*.errors-*") for row in lines(path)]
    assert sorted(row["index"] for row in found) == [2, 5, 9]
    if kind == "tar":
        assert contents(tars(tmp_path / "shared")) == contents(tars(tmp_path / "whole"))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_random_order(tmp_path):
    source = Memory(tuple(example(i) for i in range(40)))
    orders = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        pack(source, tmp_path / name, shard_size=16, shuffle=seed)
        orders.append([item["id"] for item in read(tmp_path / name)])
    assert orders[0] == orders[1] != orders[2]
    assert all(sorted(order) == list(range(40)) for order in orders)
    assert len(set(orders[0][:16]) & set(range(16))) < 13
    with pytest.raises(ValueError, match=r"made with shuffle 1 \(now 3\)"):
        pack(source, tmp_path / "a", shard_size=16, shuffle=3)


def test_from_and_to_a_store(cloud, tmp_path):
    """Tars in a store, of tars in a store, in shares."""
    if cloud.scheme == "s3":
        with pytest.raises(ValueError, match="s3://bucket/x .*gs://.* copy"):
            pack(SOURCE, "s3://bucket/x", kind="tar")
        return
    address = "gs://bucket/packed"
    for number in (0, 1):
        pack(SOURCE, address, kind="tar", shard_size=4, shard=Shard(number, 2))
    pack(SOURCE, tmp_path / "local", kind="tar", shard_size=4)
    assert contents(tars(address)) == contents(tars(tmp_path / "local"))
    again = pack(SOURCE, address, kind="tar", shard_size=4, shard=Shard(1, 2))
    assert (again.written, again.shards) == (0, 2)
    pack(Tars(address), tmp_path / "back")
    assert contents(read(tmp_path / "back")) == contents(tars(address))
    with pytest.raises(ValueError, match="is read in blocks, too slowly for --shuffle"):
        pack(Tars(address), tmp_path / "x", shuffle=1)
    with pytest.raises(ValueError, match="ArrayRecord files are written; use the format tar"):
        pack(SOURCE, address)


def test_what_tars_cannot_keep(tmp_path):
    source = Memory((GOOD[0], GOOD[1] | {"depth": b"1"}))
    assert pack(source, tmp_path, kind="tar").skipped == 1
    assert "no 1: a field cannot be written as JSON" in errors(tmp_path)[0]["error"]
    with pytest.raises(ValueError, match="of the kind arrayrecord or tar, got 'zip'"):
        pack(source, tmp_path, kind="zip")
