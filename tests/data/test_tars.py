"""Tars against the standard library's reader, whole, damaged, changed and in odd shapes."""

import io
import json
import logging
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from data.samples import picture

from siglip2_jax.data import tar_index
from siglip2_jax.data.tar_index import index_file, index_tar
from siglip2_jax.data.tars import Tars, index_tars


def write_tar(path, members, format=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


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
        ("a.txt", b"late"),  # not beside its image
    ]
    write_tar(tmp_path / "a.tar", odd)
    examples = Tars(str(tmp_path / "*.tar")).open()
    assert len(examples) == 4
    assert examples[0]["captions"] == ("late",) and examples[0]["image"] == odd[1][1]
    assert examples[1]["captions"] == ("x", "y")
    with pytest.raises(ValueError, match=r"a.tar:d: its .json holds list"):
        examples[2]
    assert examples[3]["captions"] == () and examples[3]["name"].endswith(":ümlaut")


def test_index_is_kept_and_renewed(tmp_path, monkeypatch):
    path = str(tmp_path / "a.tar")
    write_tar(path, members(["a", "b"]))
    walks = []
    walk = tar_index._walk
    monkeypatch.setattr(tar_index, "_walk", lambda *args: walks.append(args) or walk(*args))
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
    ends = []
    with tarfile.open(tmp_path / "whole.tar") as tar:
        for member in tar:
            ends.append((member.name, member.offset_data + member.size))
    cut = min(cut, ends[-1][1] + 200)  # within the padding after the last member
    (tmp_path / "cut.tar").write_bytes(data[:cut])
    complete = {name for name, end in ends if end <= cut}
    expected = [key for key in "abcde" if {f"{key}.jpg", f"{key}.txt"} <= complete]
    assert expected
    for _ in range(2):  # found by reading, then by the index
        caplog.clear()
        examples = Tars(str(tmp_path / "cut.tar")).open()
        assert "cut.tar is damaged" in caplog.text
        names = [examples[i]["name"].rpartition(":")[2] for i in range(len(examples))]
        assert names == expected
        assert all(examples[i]["captions"] for i in range(len(examples)))


def test_no_tar(tmp_path):
    (tmp_path / "text.tar").write_text("not a tar " * 100)
    with pytest.raises(ValueError, match=r"text.tar is not an uncompressed tar"):
        Tars(str(tmp_path / "text.tar")).open()
    with tarfile.open(tmp_path / "zipped.tar", "w:gz"):
        pass
    with pytest.raises(ValueError, match=r"zipped.tar is not an uncompressed tar"):
        Tars(str(tmp_path / "zipped.tar")).open()
    write_tar(tmp_path / "empty.tar", [("a.txt", b"text")])
    with pytest.raises(ValueError, match="no image in 1 tar file; expected webdataset samples"):
        Tars(str(tmp_path / "empty.tar")).open()
    with pytest.raises(ValueError, match="matches no file"):
        Tars(str(tmp_path / "absent-*.tar")).open()


def test_tar_that_shrinks_after_it_was_opened(tmp_path):
    path = tmp_path / "a.tar"
    write_tar(path, members(["a", "b"]))
    examples = Tars(str(path)).open()
    os.truncate(path, 1000)
    with pytest.raises(OSError, match=r"a.tar:b: the tar has become shorter"):
        examples[1]


def test_threads(tmp_path):
    write_tar(tmp_path / "a.tar", members([f"{i:03d}" for i in range(60)]))
    examples = Tars(str(tmp_path)).open()
    alone = [examples[i] for i in range(60)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(examples.__getitem__, list(range(60)) * 5)) == alone * 5
