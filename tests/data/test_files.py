"""What a user types becomes the files that are meant."""

import os

import pytest
from PIL import Image

from siglip2_jax.data.files import IMAGE_SUFFIXES, find_images
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
    for suffix in IMAGE_SUFFIXES:
        path = tmp_path / f"photo{suffix}"
        Image.new("1" if suffix == ".pbm" else "L", (4, 4)).save(path, known.get(suffix))
        assert decode(path).size == (4, 4)
        assert find_images([os.fspath(tmp_path)])[-1:] == [str(path)]
        path.unlink()
    with pytest.raises(ImageError):
        decode(tmp_path / "photo.jpg")
