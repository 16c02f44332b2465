"""SugarCrepe, read from small files in the published layout."""

import json

import numpy as np
import pytest

from siglip2_jax.benchmarks.compositional import CATEGORIES, Choice, SugarCrepe, read_choices
from siglip2_jax.testing import StandInEmbedder


def question(filename, caption, negative):
    return {"filename": filename, "caption": caption, "negative_caption": negative}


@pytest.fixture
def published(tmp_path):
    """Two categories; the photo b.jpg is in both."""
    added = {
        "0": question("a.jpg", "a dog", "a blue dog"),
        "1": question("b.jpg", "a cat", "a dog"),
        "7": question("b.jpg", "a cat", "a cat"),
    }
    (tmp_path / "add_att.json").write_text(json.dumps(added))
    (tmp_path / "swap_obj.json").write_text(json.dumps({"0": question("b.jpg", "a dog", "a cat")}))
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).touch()
    return tmp_path


def test_the_true_caption_must_score_higher(published):
    rng = np.random.default_rng(0)
    rows = {text: rng.standard_normal(4) for text in ("a dog", "a blue dog", "a cat")}
    images = {str(published / name): rng.standard_normal(4) for name in ("a.jpg", "b.jpg")}
    model = StandInEmbedder(images, rows)
    evaluator = SugarCrepe(
        path=str(published), images=str(published), categories=("add_att", "swap_obj"),
        max_num_patches=49,
    )  # fmt: skip
    found = evaluator(model)
    a, b = images.values()
    # The last question of the first category has twice the same text: a tie is wrong.
    right = [a @ rows["a dog"] > a @ rows["a blue dog"], b @ rows["a cat"] > b @ rows["a dog"], 0]
    wanted = {"add_att": sum(right) / 3, "swap_obj": float(not right[1])}
    assert found == wanted | {"mean": pytest.approx(sum(wanted.values()) / 2)}
    assert model.budgets == [49]


def test_an_unreadable_photo_is_wrong(published):
    rows = np.eye(3)
    texts = dict(zip(("a dog", "a blue dog", "a cat"), rows, strict=True))
    images = {str(published / "a.jpg"): rows[0], str(published / "b.jpg"): np.full(3, np.nan)}
    evaluator = SugarCrepe(path=str(published), images=str(published), categories=("add_att",))
    assert evaluator(StandInEmbedder(images, texts))["add_att"] == pytest.approx(1 / 3)


def test_what_is_missing_is_named(published, tmp_path):
    evaluator = SugarCrepe(path=str(published), images=str(published))
    assert len(CATEGORIES) == 7
    with pytest.raises(ValueError, match="add_obj.json: no such file; expected JSON"):
        evaluator(StandInEmbedder({}, {}))
    evaluator = SugarCrepe(path=str(published), images="/nowhere", categories=("add_att",))
    with pytest.raises(ValueError, match="/nowhere/a.jpg: no such image, the first of 2"):
        evaluator(StandInEmbedder({}, {}))


def test_questions_are_read_in_order(published):
    choices = read_choices(str(published / "add_att.json"))
    assert choices[0] == Choice("a.jpg", "a dog", "a blue dog") and len(choices) == 3


def test_malformed_files_are_named(tmp_path):
    path = tmp_path / "add_att.json"
    for found in ([], {}):
        path.write_text(json.dumps(found))
        with pytest.raises(ValueError, match="add_att.json: expected an object of questions by id"):
            read_choices(str(path))
    for entry in ("x", {"filename": "a.jpg", "caption": "a dog"}, question("a.jpg", "a dog", 1)):
        path.write_text(json.dumps({"3": entry}))
        with pytest.raises(ValueError, match="question '3' has no texts filename, caption, negat"):
            read_choices(str(path))
