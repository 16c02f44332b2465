"""Folders, examples in memory and mixtures: what is read, and what is said of mistakes."""

import errno
import json
import os
import pickle

import pytest
from data.samples import example, picture
from etils import epath

from siglip2_jax.data.example import ExampleError, SourceError, as_captions
from siglip2_jax.data.sources import Folder, Memory, Mixture


def make_folder(path, rows, name="captions.jsonl"):
    (path / "images" / "deep").mkdir(parents=True)
    for i, row in enumerate(rows):
        (path / "images" / row["file"]).write_bytes(picture(i))
    # One that cuts lines wherever Unicode does would break the third row.
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (path / name).write_bytes(b"\xef\xbb\xbf" + "\n\n".join(lines).encode())
    return str(path)


ROWS = [
    {"file": "a.jpg", "captions": ["one", " ", None, "two", "one"], "split": "train", "size": [1]},
    {"file": "deep/b.jpg", "caption": "three", "split": "test", "image": "?", "name": "x"},
    {"file": "c.jpg", "text": "a line\u2028ends", "split": "train"},
    {"file": "a.jpg", "split": "train", "captions": []},
]


def test_folder(tmp_path):
    path = make_folder(tmp_path, ROWS)
    examples = Folder(path).open()
    found = [examples[i] for i in range(len(examples))]
    captions = [("one", "two"), ("three",), ("a line\u2028ends",), ()]
    assert [row["captions"] for row in found] == captions
    assert found[0].keys() == {"image", "captions", "name", "file", "split", "size"}
    for row, original in zip(found, ROWS, strict=True):
        assert row["image"] == (tmp_path / "images" / original["file"]).read_bytes()
        assert row["name"].startswith(str(tmp_path / "images" / original["file"]))
    assert len({row["name"] for row in found}) == 4
    again = pickle.loads(pickle.dumps(examples))
    assert [again[i] for i in range(4)] == found


def test_folder_where_and_template(tmp_path):
    path = make_folder(tmp_path, ROWS, "labels.jsonl")
    source = Folder(path, "labels.jsonl", where=(("split", "test"),), template="a {name}, {split}")
    examples = pickle.loads(pickle.dumps(source)).open()
    assert len(examples) == 1 and examples[0]["captions"] == ("a x, test",)
    with pytest.raises(ValueError, match=r"no row has split='dev' and size=\[1\]"):
        Folder(path, "labels.jsonl", where=(("split", "dev"), ("size", [1]))).open()
    with pytest.raises(ValueError, match=r"needs the field 'breed', found file, captions, split"):
        Folder(path, "labels.jsonl", template="a {breed}").open()
    with pytest.raises(ValueError, match="cannot be filled in"):
        Folder(path, "labels.jsonl", template="a {}").open()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; expected JSON lines"),
        ("", "no rows"),
        ('{"file": "a.jpg", "caption": "x"}\n{"file": ', r"line 2: not JSON"),
        ('{"image": "a.jpg"}', r'line 1: expected an object with a text "file"'),
        ("[1]", r'line 1: expected an object with a text "file"'),
        ('{"file": "a.jpg", "name": "x"}', "no row has one of the keys captions, caption, text"),
    ],
)
def test_malformed_folders(tmp_path, content, message):
    if content is not None:
        (tmp_path / "captions.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        Folder(str(tmp_path)).open()
    assert str(tmp_path) in str(error.value)


def test_a_missing_image_is_no_bad_example(tmp_path):
    make_folder(tmp_path, ROWS)
    (tmp_path / "images" / "c.jpg").unlink()
    examples = Folder(str(tmp_path)).open()
    with pytest.raises(SourceError, match=r"images/c\.jpg: there is no such file; put it back, or"):
        examples[2]
    assert examples[1]["captions"] == ("three",)


@pytest.mark.parametrize("name", ["", "x\n" * 300, "a.jpg/b", "a\0b", "\ud800"])
def test_a_name_that_no_file_has_is_a_bad_example(tmp_path, name):
    make_folder(tmp_path, ROWS)
    (tmp_path / "captions.jsonl").write_text(json.dumps({"file": name, "caption": "five"}))
    examples = Folder(str(tmp_path)).open()
    with pytest.raises(ExampleError, match=r"images.*: this is no file\.$") as raised:
        examples[0]
    assert "\n" not in str(raised.value)


def test_errors_of_the_system_name_the_file(tmp_path, monkeypatch):
    """A file that is open already does not know its name, nor does the client of a store."""
    make_folder(tmp_path, ROWS)
    examples = Folder(str(tmp_path)).open()

    def fail(error):
        def read(*_):
            raise error

        return read

    def is_of(name, reason):
        with pytest.raises(OSError) as raised:
            examples[1]
        assert raised.value.filename == str(tmp_path / name)
        assert (raised.value.errno, raised.value.strerror) == (errno.EIO, reason)

    path = type(epath.Path(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(path, "read_bytes", fail(OSError(errno.EIO, "no disk")))
        is_of("images/deep/b.jpg", "no disk")
        patch.setattr(path, "read_bytes", fail(RuntimeError("503,\n later")))
        is_of("images/deep/b.jpg", "503, later")
    monkeypatch.setattr(os, "pread", fail(OSError(errno.EIO, "no disk")))
    is_of("captions.jsonl", "no disk")


def test_rows_stay_in_their_file(tmp_path):
    """12 bytes a row and a flag, however long it is; a file that changed is not read as before."""
    path = tmp_path / "captions.jsonl"
    rows = [{"file": f"{i}.jpg", "caption": "a long text " * 50} for i in range(1000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples = Folder(str(tmp_path)).open()
    pickled = pickle.dumps(examples)
    assert len(pickled) < 13 * 1000 + 2000
    again = pickle.loads(pickled)
    assert again.without_image(999)["captions"] == (rows[999]["caption"],)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    with pytest.raises(SourceError, match=r"captions\.jsonl has changed since it was opened"):
        pickle.loads(pickled).without_image(999)


def test_development_folders(shared):
    flickr = Folder(str(shared / "data/flickr8k_1k"), where=(("split", "train"),)).open()
    lines = (shared / "data/flickr8k_1k/captions.jsonl").read_bytes().splitlines()
    rows = [json.loads(line) for line in lines]
    rows = [row for row in rows if row["split"] == "train"]
    assert len(flickr) == len(rows) > 100
    assert [flickr[i]["captions"] for i in (0, 7)] == [tuple(rows[i]["captions"]) for i in (0, 7)]
    caltech = Folder(
        str(shared / "data/caltech101_20"), "labels.jsonl", template="a photo of a {name}"
    ).open()
    assert caltech[0]["captions"] == ("a photo of a face",) and caltech[0]["label"] == 0


@pytest.mark.parametrize(
    ("value", "captions"),
    [
        (None, ()),
        ("  ", ()),
        ("a", ("a",)),
        (["é".encode(), "b", "é"], ("é", "b")),
        (["a\n", "a", b"\xef\xbb\xbfa\r\n", "\ufeff\n"], ("a",)),
        (("a", None), ("a",)),
    ],
)
def test_captions(value, captions):
    assert as_captions(value, "it") == captions


@pytest.mark.parametrize("value", [3, [1.5], {"a": "b"}, [["a"]]])
def test_captions_that_are_no_texts(value):
    with pytest.raises(ValueError, match="it: a caption is .*, expected a text"):
        as_captions(value, "it")


def test_memory():
    examples = (example(0), example(1))
    assert Memory(examples).open()[1] is examples[1]
    assert repr(Memory(examples)) == repr(Memory((example(0), example(1))))
    assert repr(Memory(examples)) != repr(Memory((example(0), example(2))))
    with pytest.raises(ValueError, match="no examples in memory"):
        Memory(()).open()
    with pytest.raises(ValueError, match="example 1 in memory lacks captions, name"):
        Memory((example(0), {"image": b""})).open()


def test_mixture_refuses_nonsense():
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="must be above 0"):
            Mixture(((Folder("a"), 1.0), (Folder("b"), weight)))
    with pytest.raises(ValueError, match="at least one part"):
        Mixture(())
