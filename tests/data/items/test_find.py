"""Shards of what a user names: which kind it is, how it is cut, and what changes a fingerprint."""

import os
import pickle
import re

import pytest
from data.samples import example, picture, write_tar

from siglip2_jax.data import Memory, Table, Tars
from siglip2_jax.data.items.find import find_items
from siglip2_jax.data.items.item import Columns
from siglip2_jax.data.items.shards import ImageGroup, Shards
from siglip2_jax.data.tools.index import index
from siglip2_jax.data.tools.pack import pack
from siglip2_jax.strings import Strings


def write_images(folder, count, first=0):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        (folder / f"{i:03d}.jpg").write_bytes(picture(i))
    return str(folder)


def write_tars(folder, *counts):
    folder.mkdir(parents=True, exist_ok=True)
    for number, count in enumerate(counts):
        members = [
            (f"{i:03d}.{suffix}", data)
            for i in range(count)
            for suffix, data in (("jpg", picture(100 * number + i)), ("txt", b"a text"))
        ]
        write_tar(folder / f"{number:05d}.tar", members)
    return str(folder)


def test_images_are_cut_into_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("siglip2_jax.data.items.shards.ROWS", 4)
    a, b = write_images(tmp_path / "a b", 6), write_images(tmp_path / "b", 3)
    shards = find_items([a, f"{b}/*.jpg", f"{b}/001.jpg"])
    assert len(shards) == 3
    paths = [path for shard in shards for path in shard.source.open()._paths]
    assert paths == [f"{a}/{i:03d}.jpg" for i in range(6)] + [f"{b}/{i:03d}.jpg" for i in range(3)]
    assert [shard.name for shard in shards] == [f"{i:06d}-images" for i in range(3)]
    assert find_items([a])[1].name == "000001-a-b"
    assert [(x.first, x.last) for x in shards] == [(0, None)] * 3


def test_kinds_by_suffix_and_by_what_a_directory_holds(tmp_path):
    tars = write_tars(tmp_path / "tars", 3, 2)
    images = write_images(tmp_path / "images", 2)
    (tmp_path / "t.csv").write_text("image,caption\n" + "images/000.jpg,x\n" * 3)
    pack(Memory(tuple(map(example, range(5)))), tmp_path / "packed", shard_size=3)
    specs = [images, f"{tars}/00001.tar", tars, images, str(tmp_path / "t.csv")]
    shards = find_items([*specs, str(tmp_path / "packed")])
    kinds = [type(shard.source).__name__ for shard in shards]
    assert kinds == [
        *("ImageFiles", "Tars", "Tars", "Tars", "ImageFiles", "Table", "Records", "Records")
    ]
    assert [len(shard.source.open()) for shard in shards] == [2, 2, 3, 2, 2, 3, 3, 2]
    assert [shard.name for shard in shards[1:3]] == ["000001-00001", "000002-00000"]
    assert len({shard.name for shard in shards}) == len(shards)
    assert shards[5].source == Table(str(tmp_path / "t.csv"))
    assert shards[-1].name == shards[7].name
    with pytest.raises(IndexError):
        shards[8]
    next((tmp_path / "packed").glob("*00001-of*.arrayrecord")).unlink()
    with pytest.raises(ValueError, match="packed holds 1 of 2 files; finish packing it, or name"):
        find_items([str(tmp_path / "packed")])
    assert len(find_items([str(tmp_path / "packed" / "*.arrayrecord")])) == 1


def test_what_img2dataset_writes_is_tars(tmp_path):
    folder = write_tars(tmp_path, 2, 1)
    for name in ("00000.parquet", "00001.parquet", "00000_stats.json"):
        (tmp_path / name).write_bytes(b"about the tar")
    assert [type(x.source) for x in find_items([folder])] == [Tars, Tars]
    (tmp_path / "other.parquet").write_bytes(b"more")
    with pytest.raises(ValueError, match=r"holds .parquet and .tar; name those that are meant"):
        find_items([folder])


def test_a_mixture_in_a_directory(tmp_path):
    folder = write_tars(tmp_path, 2)
    write_images(tmp_path, 1)
    with pytest.raises(ValueError, match=r"holds .tar and images; name those .* by a glob$"):
        find_items([folder])
    assert len(find_items([f"{folder}/*.tar", f"{folder}/*.jpg"])) == 2


def test_tars_with_a_manifest_are_cut_into_whole_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("siglip2_jax.data.items.kinds.ROWS", 10)
    monkeypatch.setattr("siglip2_jax.data.tools.index.BLOCK_SIZE", 4)
    folder = write_tars(tmp_path, 7, 9, 3)
    index(folder)
    shards = find_items([folder])
    assert [(x.first, x.last) for x in shards] == [(0, 8), (8, 16), (16, 19)]
    assert all(x.source == Tars(folder) and not list(x.files) for x in shards)
    before = [x.fingerprint for x in shards]
    write_tars(tmp_path, 7, 8, 3)
    index(folder)
    assert not set(before) & {x.fingerprint for x in find_items([folder])}


def test_columns_of_a_table(tmp_path):
    images = write_images(tmp_path, 1)
    table = str(tmp_path / "t.tsv")
    (tmp_path / "t.tsv").write_text(f"file_name\ttext\tlabel\ttitle\n{images}/000.jpg\ta\tb\tc\n")
    assert find_items([table])[0].source == Table(table, "file_name", "text")
    columns = Columns(caption="title", id="label", fields=("label",))
    assert find_items([table], columns)[0].source == Table(table, "file_name", "title")
    for columns, name in (
        (Columns(image="x"), "x"),
        (Columns(caption="x"), "x"),
        (Columns(id="x"), "x"),
        (Columns(fields=("label", "x")), "x"),
    ):
        with pytest.raises(ValueError, match=f"t.tsv has no column '{name}'; its columns are file"):
            find_items([table], columns)
    with pytest.raises(ValueError, match="a column 'text' cannot be kept"):
        find_items([table], Columns(fields=("text",)))


@pytest.mark.parametrize(
    ("spec", "columns", "message"),
    [
        ("none", Columns(), "none matches no image; expected a file, a glob or a directory"),
        ("none.tar", Columns(), "none.tar matches no file; expected a .tar file"),
        ("none*.csv", Columns(), "matches no file; expected a .csv file"),
        ("tfds:mnist", Columns(), "tfds:mnist names no split; expected tfds:NAME:SPLIT"),
        ("tars", Columns(caption="x"), "tars has no columns, so that there is no caption column"),
    ],
)
def test_what_is_refused(tmp_path, monkeypatch, spec, columns, message):
    monkeypatch.chdir(tmp_path)
    write_tars(tmp_path / "tars", 1)
    with pytest.raises(ValueError, match=re.escape(message)):
        find_items([spec], columns)


def test_nothing_to_read():
    with pytest.raises(ValueError, match="there is nothing to read"):
        find_items([])


@pytest.mark.parametrize("change", ["content", "time", "option", "range"])
def test_fingerprints(tmp_path, monkeypatch, change):
    images, tars = write_images(tmp_path / "i", 3), write_tars(tmp_path / "t", 2)
    (tmp_path / "t.csv").write_text(f"image,caption,n\n{images}/000.jpg,x,1\n")
    specs = [images, tars, str(tmp_path / "t.csv")]
    before = [x.fingerprint for x in find_items(specs)]
    assert before == [x.fingerprint for x in pickle.loads(pickle.dumps(find_items(specs)))]
    assert len(set(before)) == 3
    columns, same = Columns(), set()
    if change == "content":
        (tmp_path / "i" / "001.jpg").write_bytes(picture(9, 50))
        same = {1, 2}
    elif change == "time":
        os.utime(tmp_path / "t" / "00000.tar", (1, 1))
        same = {0, 2}
    elif change == "option":
        (tmp_path / "t.csv").write_text(f"image,caption,n\n{images}/000.jpg,x,1\n")
        columns, specs, before = Columns(caption="n"), specs[2:], before[2:]
    else:
        write_images(tmp_path / "i", 1, first=7)
        same = {1, 2}
    after = [x.fingerprint for x in find_items(specs, columns)]
    assert {i for i, x in enumerate(after) if x == before[i]} == same


@pytest.mark.parametrize("kind", ["tars", "images"])
def test_shards_take_the_memory_of_their_paths(tmp_path, kind):
    """Nothing of a file is read: there are its path, and 8 bytes for where that stands."""
    number, suffix = 2_000, {"tars": "tar", "images": "jpg"}[kind]
    for i in range(number):
        os.close(os.open(tmp_path / f"{i:09d}.{suffix}", os.O_CREAT))
    shards = find_items([str(tmp_path)])
    assert len(shards) == (number if kind == "tars" else 1)
    path = len(str(tmp_path / f"{0:09d}.{suffix}"))
    assert len(pickle.dumps(shards)) < number * (path + 8) + 5_000
    assert len({shard.name for shard in shards}) == len(shards)


def test_shards_are_cut_without_copies():
    group = ImageGroup("x", Strings.join(f"{i}.jpg" for i in range(25_000)))
    shards = Shards([group])
    assert [len(x.source.open()) for x in shards] == [10_000, 10_000, 5_000]
    assert shards[1].source.open()._paths[0] == "10000.jpg"
    assert shards[1].source.paths.data.base is not None
