"""Samples of tars of every shape: none is mixed, none is lost without a word."""

import json
import logging
import shutil
import subprocess
import tarfile
import time

import numpy as np
import pytest
from data.samples import picture, write_tar

from siglip2_jax.data.tar.index import Remark, index_file, index_tar
from siglip2_jax.data.tars import Tars

RED, BLUE, GREEN = (picture(i) for i in range(3))
NAMES = {RED: "red", BLUE: "blue", GREEN: "green"}
FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def link(kind: bytes, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, target
    return info


def pairs(tmp_path) -> list[tuple[str, str, tuple[str, ...]]]:
    """Key, image and captions of every sample of the tars in a directory."""
    examples = Tars(str(tmp_path)).open()
    samples = [examples[i] for i in range(len(examples))]
    return [
        (x["name"].rpartition(":")[2], NAMES.get(x["image"], "other"), x["captions"])
        for x in samples
    ]


def remarks(tmp_path, caplog) -> dict[str, Remark]:
    """Remarks on the tar `a.tar`, of which there is one warning or none."""
    for _ in range(2):  # read from its headers or its index, and from its index
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            index = index_tar(str(tmp_path / "a.tar"))
        warnings = [record.getMessage() for record in caplog.records]
        assert warnings == ([index.warning] if index.warning else [])
    for reason, remark in index.remarks.items():
        told = f"({remark.count}, the first: {remark.first})" in "".join(warnings)
        assert told == (reason != "other")
    return index.remarks


@pytest.mark.parametrize(
    ("members", "expected", "noted"),
    [
        (  # a key that comes again after another
            [("1.jpg", RED), ("1.txt", b"red"), ("2.jpg", GREEN), ("1.jpg", BLUE)],
            [("1", "red", ("red",)), ("2", "green", ()), ("1#2", "blue", ())],
            {"repeated": (1, "1#2")},
        ),
        (  # a second image at once: whose is the caption?
            [("1.jpg", RED), ("1.txt", b"red"), ("1.jpg", BLUE), ("2.jpg", GREEN)],
            [("2", "green", ())],
            {"ambiguous": (1, "1")},
        ),
        (
            [("1.jpg", RED), ("1.jpg", BLUE), ("1.txt", b"red"), ("1.txt", b"blue")],
            [],
            {"ambiguous": (1, "1")},
        ),
        (
            [("1.jpg", RED), ("1.json", b'{"caption": "x"}'), ("1.json", b'{"caption": "y"}')],
            [],
            {"ambiguous": (1, "1")},
        ),
        (  # of another suffix: a mask or a thumbnail
            [("1.jpg", RED), ("1.png", BLUE), ("1.txt", b"red"), ("2.jpg", GREEN)],
            [("2", "green", ())],
            {"ambiguous": (1, "1")},
        ),
        (
            [("1.jpg", RED), ("1.mask.png", BLUE), ("1.cls", b"7"), ("1.txt", b"red")],
            [("1", "red", ("red",))],
            {"other": (2, "1.cls")},
        ),
        (
            [("www.a.com_1.jpg", RED), ("www.a.com_1.txt", b"red"), ("www.b.jpg", BLUE)],
            [],
            {"dotted": (2, "www.a.com_1.jpg"), "other": (1, "www.a.com_1.txt")},
        ),
        (
            [("b.txt", b"red"), ("c.jpg", BLUE), ("d/c.json", b"{}")],
            [("c", "blue", ())],
            {"no_image": (2, "b")},
        ),
        (  # what macOS puts before each file
            [("._1.jpg", b"\0"), ("1.jpg", RED), ("d/._1.txt", b"\0"), ("1.txt", b"red")],
            [("1", "red", ("red",))],
            {"other": (2, "._1.jpg")},
        ),
        (
            [("x\udcff.jpg", RED), ("x\udcff.txt", b"red"), ("y\udcff.txt", b"")],
            [("x\\udcff", "red", ("red",))],
            {"no_image": (1, "y\\udcff")},
        ),
    ],
)
def test_samples(tmp_path, caplog, members, expected, noted):
    write_tar(tmp_path / "a.tar", members, tarfile.GNU_FORMAT)
    write_tar(tmp_path / "b.tar", [("0.jpg", GREEN)])
    assert pairs(tmp_path) == [*expected, ("0", "green", ())]
    assert remarks(tmp_path, caplog) == noted


@pytest.mark.parametrize("format", FORMATS)
def test_links_are_followed(tmp_path, caplog, format):
    hard, soft = tarfile.LNKTYPE, tarfile.SYMTYPE
    members = [
        ("store/x", RED),
        ("a/1.jpg", link(hard, "store/x")),
        ("a/1.txt", b"red"),
        ("store/x", BLUE),  # takes the place of the first, which 1 is still linked to
        ("./a/2.jpg", link(soft, "../a/./3.jpg")),
        ("./a/2.txt", link(soft, "../texts/blue")),
        ("a/3.jpg", link(hard, "./store/x")),
        ("a/3.txt", link(hard, "a/2.txt")),
        ("texts/blue", b"blue"),
    ]
    write_tar(tmp_path / "a.tar", members, format)
    expected = [("a/1", "red", ("red",)), ("./a/2", "blue", ("blue",)), ("a/3", "blue", ("blue",))]
    assert pairs(tmp_path) == expected
    assert set(remarks(tmp_path, caplog)) == {"other"}
    with tarfile.open(tmp_path / "a.tar") as tar:
        for key, image, _ in expected:
            assert NAMES[tar.extractfile(f"{key}.jpg").read()] == image


def test_links_to_nothing(tmp_path, caplog):
    members = [
        *(("1.jpg", link(tarfile.SYMTYPE, "2.jpg")), ("1.txt", b"round")),
        *(("2.jpg", link(tarfile.SYMTYPE, "1.jpg")), ("2.txt", b"round")),
        *(("3.jpg", link(tarfile.SYMTYPE, "/etc/hosts")), ("3.txt", b"outside")),
        *(("4.jpg", link(tarfile.LNKTYPE, "5.jpg")), ("4.txt", b"later")),
        *(
            ("5.jpg", RED),
            ("5.txt", b"red"),
            ("6.jpg", BLUE),
            ("6.txt", link(tarfile.FIFOTYPE, "")),
        ),
    ]
    write_tar(tmp_path / "a.tar", members)
    assert pairs(tmp_path) == [("5", "red", ("red",))]
    assert remarks(tmp_path, caplog) == {"unreadable": (5, "1")}


@pytest.mark.parametrize("version", ["gnu", "0.0", "0.1", "1.0"])
def test_sparse_files_are_not_read_as_they_lie(tmp_path, caplog, version):
    if not shutil.which("tar"):
        pytest.skip("GNU tar is not there")
    (tmp_path / "1.jpg").write_bytes(RED)
    with (tmp_path / "1.jpg").open("r+b") as file:
        file.truncate(1 << 20)
    for key in "123":
        (tmp_path / f"{key}.txt").write_bytes(b"red")
    (tmp_path / "2.jpg").write_bytes(RED)
    options = (
        ["--format=gnu"] if version == "gnu" else ["--format=pax", "--sparse-version", version]
    )
    names = ["1.jpg", "1.txt", "2.jpg", "2.txt"]
    subprocess.run(["tar", "-cSf", "a.tar", *options, *names], cwd=tmp_path, check=True)
    assert pairs(tmp_path) == [("2", "red", ("red",))]
    assert remarks(tmp_path, caplog) == {"unreadable": (1, "1")}


@pytest.mark.parametrize("format", FORMATS)
def test_joined_tars_are_read_to_the_end(tmp_path, caplog, format):
    parts = [
        [("1.jpg", RED), ("1.txt", b"red"), ("2.jpg", GREEN)],
        [("2.txt", b"blue"), ("1.jpg", BLUE), ("1.json", b'{"caption": "blue"}')],
        [],
        [("1.jpg", GREEN)],
    ]
    for i, part in enumerate(parts):
        write_tar(tmp_path / f"{i}.part", part, format)
    data = b"".join((tmp_path / f"{i}.part").read_bytes() for i in range(4))
    (tmp_path / "a.tar").write_bytes(data)
    assert pairs(tmp_path) == [
        ("1", "red", ("red",)),
        ("2", "green", ()),
        ("1#2", "blue", ("blue",)),
        ("1#3", "green", ()),
    ]
    assert remarks(tmp_path, caplog) == {"no_image": (1, "2"), "repeated": (2, "1#2")}
    with (tmp_path / "a.tar").open("ab") as file:
        file.write(b"something else" * 100)
    assert len(pairs(tmp_path)) == 4
    assert f"is damaged at byte {len(data)} of {len(data) + 1400} (invalid header)" in caplog.text


@pytest.mark.parametrize("cut", [0, 512, 700, 1500])
def test_tar_joined_to_one_that_was_cut(tmp_path, caplog, cut):
    """The last data before the cut run into the next tar: they are none of its sample."""
    noise = np.random.default_rng(0).bytes(9000)
    write_tar(tmp_path / "1.part", [("1.jpg", RED), ("1.txt", b"red"), ("2.jpg", noise)])
    write_tar(tmp_path / "2.part", [("3.jpg", BLUE), ("3.txt", b"blue"), ("4.jpg", noise)])
    first = (tmp_path / "1.part").read_bytes()
    with tarfile.open(tmp_path / "1.part") as tar:
        start = tar.getmember("2.jpg").offset_data
    (tmp_path / "a.tar").write_bytes(first[: start + cut] + (tmp_path / "2.part").read_bytes())
    assert pairs(tmp_path) == [("1", "red", ("red",))]
    assert remarks(tmp_path, caplog) == {"unreadable": (1, "2")}
    assert "a.tar is damaged at byte" in caplog.text and "what follows is lost" in caplog.text


def test_cut_within_the_headers_of_a_member(tmp_path, caplog):
    long = "k" * 200
    write_tar(tmp_path / "a.tar", [("1.jpg", RED), ("1.txt", b"red"), (f"{long}.jpg", BLUE)])
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(data[: data.index(long.encode()) + 200])
    assert pairs(tmp_path) == [("1", "red", ("red",))]
    assert remarks(tmp_path, caplog) == {} and "is damaged at byte" in caplog.text


@pytest.mark.parametrize("size", ["-1024", "x"])
def test_damaged_extended_header(tmp_path, caplog, size):
    bad = tarfile.TarInfo()
    bad.pax_headers = {"size": size}
    write_tar(tmp_path / "a.tar", [("1.jpg", RED), ("1.txt", b"red"), ("2.jpg", bad)])
    assert pairs(tmp_path)[0] == ("1", "red", ("red",))
    assert len(pairs(tmp_path)) == (2 if size == "x" else 1)


def test_long_keys_cost_their_length(tmp_path):
    long = "k" * 40_000
    members = [(f"{i:04d}.jpg", b"") for i in range(2000)]
    write_tar(tmp_path / "a.tar", [*members, (f"{long}.jpg", RED), (f"{long}.txt", b"red")])
    index = index_tar(str(tmp_path / "a.tar"))
    assert index_file(index.path).stat().st_size < 2000 * 70 + 40_000 + 4096
    index = index_tar(str(tmp_path / "a.tar"))
    assert index.keys.data.nbytes == 2000 * 4 + 40_000 and index.keys[2000] == long
    name = Tars(str(tmp_path)).open()[2000]["name"]
    assert name == f"{tmp_path}/a.tar:{long}"


@pytest.mark.slow
def test_tar_of_200_000_members(tmp_path):
    row = json.dumps({"caption": "x"}).encode()
    kinds = (("jpg", b""), ("json", row))
    write_tar(
        tmp_path / "a.tar",
        ((f"{i:06d}.{kind}", data) for i in range(100_000) for kind, data in kinds),
        tarfile.USTAR_FORMAT,
    )
    index = index_tar(str(tmp_path / "a.tar"))
    assert len(index) == 100_000 and index.keys[99_999] == "099999" and not index.remarks
    start = time.perf_counter()
    again = index_tar(str(tmp_path / "a.tar"))
    assert time.perf_counter() - start < 1
    assert np.array_equal(again.spans, index.spans)
    assert np.array_equal(again.keys.data, index.keys.data)
    assert index_file(index.path).stat().st_size < 100_000 * 70
