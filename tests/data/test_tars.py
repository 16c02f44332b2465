"""Tars against the standard library's reader, whole, damaged, changed and in odd shapes."""

import errno
import json
import logging
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from data.samples import POINTER, picture, write_tar

from siglip2_jax.data.example import ExampleError, SourceError
from siglip2_jax.data.tar import index as tar_index
from siglip2_jax.data.tar.index import index_file, index_tar
from siglip2_jax.data.tars import Tars, index_tars


def members(keys, kind="jpg"):
    """Members of a tar for each key, as img2dataset writes them."""
    for key in keys:
        fields = {"caption": f"caption of {key}", "url": f"http://{key}", "width": 40}
        yield f"{key}.{kind}", picture(len(key))
        yield f"{key}.txt", f"caption of {key}".encode()
        yield f"{key}.json", json.dumps(fields).encode()


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_same_as_the_standard_library(tmp_path, format):
    long = "d" * 60 + "/" + "k" * 90  # needs more than one header block in the newer formats
    keys = [["000000", "000001", long], ["ten", "deep/ten"]]
    for i, part in enumerate(keys):
        write_tar(tmp_path / f"{i}.tar", members(part, ("jpg", "WEBP")[i]), format)
    examples = Tars(str(tmp_path)).open()
    assert len(examples) == 5
    for source in (examples, pickle.loads(pickle.dumps(examples)), Tars(str(tmp_path)).open()):
        for n, (i, key) in enumerate((i, key) for i, part in enumerate(keys) for key in part):
            with tarfile.open(tmp_path / f"{i}.tar") as tar:
                image = tar.extractfile(f"{key}.{('jpg', 'WEBP')[i]}").read()
            name = f"{tmp_path}/{i}.tar:{key}"
            caption = (f"caption of {key}",)
            fields = {"url": f"http://{key}", "width": 40}
            assert source[n] == {"image": image, "captions": caption, "name": name, **fields}


def test_odd_members(tmp_path):
    odd = [
        ("a.seg.png", picture(0, kind="PNG")),  # a suffix "seg.png" is no image of sample a
        ("a.png", picture(1, kind="PNG")),
        ("b.txt", b"no image"),
        ("c.jpeg", picture(2)),
        ("c.json", json.dumps({"captions": ["x", "y"], "caption": "x"}).encode()),
        ("d.jpg", picture(3)),
        ("d.json", b"[1]"),
        ("ümlaut.jpg", picture(4)),
    ]
    write_tar(tmp_path / "a.tar", odd)
    examples = Tars(str(tmp_path / "*.tar")).open()
    assert len(examples) == 4
    assert examples[0]["captions"] == () and examples[0]["image"] == odd[1][1]
    assert examples[1]["captions"] == ("x", "y")
    with pytest.raises(ValueError, match=r"a.tar:d: its .json holds list"):
        examples[2]
    assert examples[3]["captions"] == () and examples[3]["name"].endswith(":ümlaut")


def test_index_is_kept_and_renewed(tmp_path, monkeypatch):
    path = str(tmp_path / "a.tar")
    write_tar(path, members(["a", "b"]))
    walks = []
    walk = tar_index.read_members
    monkeypatch.setattr(tar_index, "read_members", lambda path: walks.append(path) or walk(path))
    done = []
    assert len(index_tars(path, lambda *counts: done.append(counts))[0]) == 2
    assert done == [(1, 1)] and len(walks) == 1 and index_file(path).exists()
    assert len(index_tar(path)) == 2 and len(walks) == 1
    write_tar(path, members(["a", "b", "c"]))
    assert len(index_tar(path)) == 3 and len(walks) == 2
    index_file(path).write_bytes(index_file(path).read_bytes()[:-40])
    assert len(index_tar(path)) == 3 and len(walks) == 3
    os.utime(path, ns=(1, 1))  # other content of the same size
    assert len(index_tar(path)) == 3 and len(walks) == 4
    monkeypatch.setitem(tar_index._FORMAT, "images", [".jpg"])  # a version that reads others
    assert len(index_tar(path)) == 3 and len(walks) == 5


def test_index_that_cannot_be_kept(tmp_path, monkeypatch, caplog):
    path = str(tmp_path / "a.tar")
    write_tar(path, members(["a"]))
    index_file(path).mkdir()  # the tests may run as root, whom no permission stops
    with caplog.at_level(logging.WARNING):
        assert Tars(path).open()[0]["captions"] == ("caption of a",)
    assert "cannot be kept beside it" in caplog.text


@pytest.mark.parametrize("cut", [3500, 5632, 6000, 6656, 20_000])
def test_truncated_tar_gives_what_is_whole(tmp_path, caplog, cut):
    whole = list(members(["a", "b", "c", "d", "e"]))
    write_tar(tmp_path / "whole.tar", whole)
    data = (tmp_path / "whole.tar").read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        spans = {x.name: (x.offset_data, x.offset_data + x.size) for x in tar}
    cut = min(cut, spans["e.json"][1] + 200)  # within the padding after the last member
    (tmp_path / "cut.tar").write_bytes(data[:cut])
    complete = {name for name, (_, end) in spans.items() if end <= cut}
    torn = {name[0] for name, (start, end) in spans.items() if start <= cut < end}
    expected = [key for key in "abcde" if f"{key}.jpg" in complete and key not in torn]
    assert expected
    for _ in range(2):  # found by reading, then by the index
        caplog.clear()
        examples = Tars(str(tmp_path / "cut.tar")).open()
        assert "cut.tar is damaged" in caplog.text
        names = [examples[i]["name"].rpartition(":")[2] for i in range(len(examples))]
        assert names == expected
        for i, key in enumerate(expected):
            assert bool(examples[i]["captions"]) == (f"{key}.txt" in complete)


def test_no_tar(tmp_path):
    (tmp_path / "text.tar").write_text("not a tar " * 100)
    with pytest.raises(ValueError, match=r"text.tar is not an uncompressed tar"):
        Tars(str(tmp_path / "text.tar")).open()
    with tarfile.open(tmp_path / "zipped.tar", "w:gz"):
        pass
    with pytest.raises(ValueError, match=r"zipped.tar is not an uncompressed tar"):
        Tars(str(tmp_path / "zipped.tar")).open()
    (tmp_path / "pointer.tar").write_bytes(POINTER)
    with pytest.raises(ValueError, match=r"pointer.tar is a Git LFS pointer.*git lfs pull"):
        Tars(str(tmp_path / "pointer.tar")).open()
    write_tar(tmp_path / "empty.tar", [("a.txt", b"text")])
    with pytest.raises(ValueError, match="no sample to use in 1 tar file; expected members"):
        Tars(str(tmp_path / "empty.tar")).open()
    with pytest.raises(ValueError, match="matches no file"):
        Tars(str(tmp_path / "absent-*.tar")).open()


def test_tar_that_shrinks_after_it_was_opened(tmp_path):
    path = tmp_path / "a.tar"
    write_tar(path, members(["a", "b"]))
    examples = Tars(str(path)).open()
    os.truncate(path, 1000)
    with pytest.raises(SourceError, match=r"a.tar:b: the tar has become shorter"):
        examples[1]


def test_threads(tmp_path):
    write_tar(tmp_path / "a.tar", members([f"{i:03d}" for i in range(60)]))
    examples = Tars(str(tmp_path)).open()
    alone = [examples[i] for i in range(60)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(examples.__getitem__, list(range(60)) * 5)) == alone * 5


def test_half_broken_samples_give_their_other_half(tmp_path, caplog):
    latin = "Müll".encode("latin-1")
    deep = b"[" * 100_000
    members = [
        *(("a.jpg", picture(0)), ("a.txt", b"good a"), ("a.json", b'{"caption": ')),
        *(("b.jpg", picture(1)), ("b.txt", latin), ("b.json", b'{"caption": "good b", "id": 7}')),
        *(("c.jpg", picture(2)), ("c.txt", b"good c"), ("c.json", deep)),
        *(("d.jpg", picture(3)), ("d.txt", latin), ("d.json", b'{"caption": 5}')),
        *(("e.jpg", picture(4)), ("e.json", b"\xff")),
    ]
    write_tar(tmp_path / "a.tar", members)
    examples = Tars(str(tmp_path)).open()
    with caplog.at_level(logging.WARNING):
        halves = [examples[i] for i in (0, 1, 2, 0)]
    assert [half["captions"] for half in halves[:3]] == [("good a",), ("good b",), ("good c",)]
    assert halves[1]["id"] == 7
    (record,) = caplog.records  # one for a tar
    assert f"{tmp_path}/a.tar:a: its .json is not JSON (" in record.getMessage()
    for i, reasons in ((3, ("not text in UTF-8", "a caption is int 5")), (4, ("not JSON",))):
        with pytest.raises(ExampleError) as caught:
            examples[i]
        assert caught.value.name == f"{tmp_path}/a.tar:{'abcde'[i]}"
        assert all(f"{caught.value.name}: " in str(caught.value) for _ in reasons)
        assert all(reason in str(caught.value) for reason in reasons)


def test_one_caption_in_two_files_is_one(tmp_path):
    texts = (b"a red car", b"a red car\n", b"\xef\xbb\xbfa red car\r\n")
    row = json.dumps({"caption": "a red car"}).encode()
    for i, text in enumerate(texts):
        write_tar(tmp_path / f"{i}.tar", [("a.jpg", picture(0)), ("a.txt", text), ("a.json", row)])
    examples = Tars(str(tmp_path)).open()
    assert [examples[i]["captions"] for i in range(3)] == [("a red car",)] * 3


def test_braces_are_no_glob(tmp_path):
    write_tar(tmp_path / "0.tar", members(["a"]))
    with pytest.raises(ValueError, match=r"braces are not expanded, write the glob .*/\*\.tar$"):
        Tars(str(tmp_path / "{0..1}.tar")).open()


def test_errors_of_the_system_name_the_tar(tmp_path, monkeypatch):
    write_tar(tmp_path / "a.tar", [("a.jpg", picture(0)), ("a.txt", b"a text")])
    examples = Tars(str(tmp_path)).open()

    def pread(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", pread)
    with pytest.raises(OSError, match="Input/output error") as error:
        examples[0]
    assert error.value.filename == str(tmp_path / "a.tar")
