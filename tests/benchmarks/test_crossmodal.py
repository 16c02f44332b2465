"""XM3600, read from a small file in the published layout."""

import json

import numpy as np
import pytest

from siglip2_jax.benchmarks.crossmodal import LANGUAGES, CrossModal, read_captions
from siglip2_jax.evals.retrieval import retrieval_metrics
from siglip2_jax.testing import StandInEmbedder

LINES = (
    {
        "image/key": "aa",
        "image/locale": "de",
        "de": {"caption": ["Ein Hund", "Hund\u2028im Gras"], "caption/tokenized": ["ein", "hund"]},
        "te": {"caption": ["కుక్క"]},
    },
    {
        "image/key": "bb",
        "image/locale": "te",
        "de": {"caption": ["Eine Katze"]},
        "te": {"caption": ["పిల్లి", "కుక్క"]},
    },
)


@pytest.fixture
def write(tmp_path):
    def write(*rows):
        text = "\n".join(
            row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows
        )
        (tmp_path / "captions.jsonl").write_text(text, encoding="utf-8")
        return str(tmp_path / "captions.jsonl")

    return write


def test_the_36_languages():
    assert len(LANGUAGES) == len(set(LANGUAGES)) == 36


def test_captions_by_language_and_image(write):
    keys, captions = read_captions(write(*LINES), ("te", "de"))
    assert keys == ["aa", "bb"]
    assert captions == {
        "te": [("కుక్క",), ("పిల్లి", "కుక్క")],
        "de": [("Ein Hund", "Hund\u2028im Gras"), ("Eine Katze",)],
    }


def test_recall_of_each_language_and_the_mean(write, tmp_path):
    rng = np.random.default_rng(0)
    write(*LINES)
    (tmp_path / "images").mkdir()
    paths = [str(tmp_path / "images" / f"{key}.jpg") for key in ("aa", "bb")]
    for path in paths:
        open(path, "wb").close()
    images = {path: row for path, row in zip(paths, rng.standard_normal((2, 4)), strict=True)}
    words = ("Ein Hund", "Hund\u2028im Gras", "Eine Katze", "కుక్క", "పిల్లి")
    texts = {word: rng.standard_normal(4) for word in words}
    model = StandInEmbedder(images, texts)
    evaluator = CrossModal(path=str(tmp_path), languages=("de", "te"), max_num_patches=64)
    found = evaluator(model)
    assert model.budgets == [64]  # images are embedded once
    pool = {"de": (words[:3], [0, 0, 1]), "te": (("కుక్క", "పిల్లి", "కుక్క"), [0, 1, 1])}
    rows = np.stack([images[path] for path in paths]).astype(np.float32)
    each = {
        language: retrieval_metrics(
            rows, np.stack([texts[word] for word in own]).astype(np.float32), np.array(owner)
        )
        for language, (own, owner) in pool.items()
    }
    for key in each["de"]:
        for language in pool:
            assert found.pop(f"{language}/{key}") == each[language][key]
        assert found.pop(key) == (each["de"][key] + each["te"][key]) / 2
    assert not found


def test_photos_that_are_not_there(write, tmp_path):
    write(*LINES)
    with pytest.raises(ValueError, match=r"images/aa.jpg: no such image, the first of 2"):
        CrossModal(path=str(tmp_path), languages=("de",))(StandInEmbedder({}, {}))


def test_a_language_without_captions_is_named(write):
    with pytest.raises(ValueError, match="no image has a caption in the language 'fr'; leave it"):
        read_captions(write(*LINES), ("de", "fr"))
    with pytest.raises(ValueError, match="no image has a caption in the language 'ar'"):
        read_captions(write(""))


def test_an_image_may_lack_a_language(write):
    _, captions = read_captions(write(LINES[0], {"image/key": "cc"}), ("de",))
    assert captions["de"][1] == ()


def test_malformed_files_are_named(write, tmp_path):
    with pytest.raises(ValueError, match="none.jsonl: no such file; expected XM3600's captions"):
        read_captions(str(tmp_path / "none.jsonl"))
    with pytest.raises(ValueError, match="captions.jsonl, line 2: not JSON"):
        read_captions(write(LINES[0], "{"), ("de",))
    with pytest.raises(ValueError, match='line 2: expected an object with a text "image/key"'):
        read_captions(write(LINES[0], {"key": "bb"}), ("de",))
    for entry in ("Hund", {"captions": ["Hund"]}, {"caption": "Hund"}, {"caption": [1]}):
        with pytest.raises(ValueError, match=r'line 1: expected {"caption": \[texts\]} for the la'):
            read_captions(write({"image/key": "aa", "de": entry}), ("de",))
    with pytest.raises(ValueError, match="line 3: the image aa was on line 1 already"):
        read_captions(write(LINES[0], LINES[1], LINES[0]), ("de",))
