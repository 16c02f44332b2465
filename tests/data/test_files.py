"""Paths and patterns become the files that a user means."""

import os

import pytest
from PIL import Image

from siglip2_jax.data.files import IMAGE_SUFFIXES, find_images, find_shards
from siglip2_jax.preprocess.decode import ImageError, decode


@pytest.fixture
def tree(tmp_path, monkeypatch):
    for name in "b.jpg a.PNG notes.txt x[1].jpg deep/er/c.webp deep/d.gif empty/readme".split():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "folder.jpg").mkdir()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        (["b.jpg", "a.PNG"], ["b.jpg", "a.PNG"]),  # in the order given
        (["."], ["a.PNG", "b.jpg", "deep/d.gif", "deep/er/c.webp", "x[1].jpg"]),
        (["*.jpg"], ["b.jpg", "x[1].jpg"]),
        (["deep/**"], ["deep/d.gif", "deep/er/c.webp"]),
        (["*.jpg", ".", "b.jpg"], ["b.jpg", "x[1].jpg", "a.PNG", "deep/d.gif", "deep/er/c.webp"]),
        (["x[1].jpg"], ["x[1].jpg"]),  # a file first, a pattern second
        (["notes.txt"], ["notes.txt"]),  # named outright, so that the reader says what is wrong
        (["gs://bucket/a.jpg"], ["gs://bucket/a.jpg"]),
    ],
)
def test_patterns(tree, typed, found):
    assert find_images(typed) == found


@pytest.mark.parametrize("typed", ["absent.jpg", "empty", "*.tiff", ""])
def test_no_match_is_an_error(tree, typed):
    with pytest.raises(ValueError, match="matches no image"):
        find_images(["b.jpg", typed])


def test_every_suffix_is_of_a_format_that_is_read(tmp_path):
    known = Image.registered_extensions()
    heif = {suffix for suffix in IMAGE_SUFFIXES if suffix.startswith(".h")}
    assert heif == {".heic", ".heif", ".hif"}  # an extra reads them: preprocess/test_image_file.py
    for suffix in IMAGE_SUFFIXES - heif:
        path = tmp_path / f"photo{suffix}"
        Image.new("1" if suffix == ".pbm" else "L", (4, 4)).save(path, known.get(suffix))
        assert decode(path).size == (4, 4)
        assert find_images([os.fspath(tmp_path)])[-1:] == [str(path)]
        path.unlink()
    with pytest.raises(ImageError):
        decode(tmp_path / "photo.jpg")


def test_shards(tmp_path):
    for name in ("b.tar", "a.tar", "a.tar.idx.npz", "x[1].tar"):
        (tmp_path / name).touch()
    names = [path.rpartition("/")[2] for path in find_shards(str(tmp_path), ".tar")]
    assert names == ["a.tar", "b.tar", "x[1].tar"]
    assert find_shards(str(tmp_path / "?.tar"), ".tar") == [str(tmp_path / n) for n in names[:2]]
    assert find_shards(str(tmp_path / "x[1].tar"), ".tar") == [str(tmp_path / "x[1].tar")]
    with pytest.raises(ValueError, match=r"matches no file; expected a \.tar file"):
        find_shards(str(tmp_path / "*.zip"), ".tar")


@pytest.fixture
def cluttered(tmp_path):
    """Two images, with hidden copies and files of other kinds beside them."""
    names = (
        "a/1.jpg b/2.HEIC .3.jpg a/._1.jpg a/.ipynb_checkpoints/1-checkpoint.jpg a/.DS_Store "
        "__MACOSX/a/._1.jpg __MACOSX/a/1.jpg .git/x.png b/clip.MOV b/old.mov a/readme x.tar.gz"
    )
    for name in names.split():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


@pytest.mark.parametrize("typed", ["", "**", "*/*"])
def test_hidden_files_are_left_out_and_others_counted(cluttered, caplog, typed):
    pattern = os.path.join(cluttered, typed) if typed else str(cluttered)
    paths = [str(cluttered / name) for name in ("a/1.jpg", "b/2.HEIC")]
    assert find_images([pattern]) == paths
    kinds = "2 .mov, 1 without a suffix" if typed == "*/*" else ""
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    message = record.getMessage()
    if kinds:
        assert message == f"{pattern}: 3 other files are passed over ({kinds})"
    else:
        assert message.startswith(f"{pattern}: 4 other files are passed over (2 .mov, 1 ")
        assert "1 .gz" in message and "1 without a suffix" in message


def test_hidden_names_that_are_typed_are_meant(cluttered, caplog):
    for folder, count in ((".git", 1), ("__MACOSX", 1), ("a/.ipynb_checkpoints", 1)):
        assert len(find_images([str(cluttered / folder)])) == count
    assert find_images([str(cluttered / ".3.jpg")]) == [str(cluttered / ".3.jpg")]
    assert not caplog.records


def test_one_warning_names_few_kinds(tmp_path, caplog):
    for i in range(9):
        (tmp_path / f"{i}.kind{i % 7}").touch()
    (tmp_path / "x.jpg").touch()
    find_images([str(tmp_path)])
    (record,) = caplog.records
    assert ": 9 other files are passed over (2 .kind" in record.getMessage()
    assert record.getMessage().count(".kind") == 5 and record.getMessage().endswith(", …)")


def test_linked_folders_are_read_once(tmp_path):
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "set" / "a" / "1.jpg").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "2.jpg").touch()
    (tmp_path / "set" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "a" / "loop").symlink_to(tmp_path / "set")
    names = [os.path.relpath(x, tmp_path / "set") for x in find_images([str(tmp_path / "set")])]
    assert names == ["a/1.jpg", "b/2.jpg"]


def test_shards_beside_other_files(tmp_path, caplog):
    for name in ("a.tar", "a.tar.idx.npz", "._a.tar", "b.tar.gz", "deep/c.tar"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert find_shards(str(tmp_path), ".tar") == [str(tmp_path / "a.tar")]
    (record,) = caplog.records
    assert record.getMessage() == f"{tmp_path}: 1 other file is passed over (1 .gz)"
