"""Files of class names and templates, written as they are published."""

import json

import numpy as np
import pytest

from siglip2_jax.evals.classes import (
    Classes,
    label_values,
    read_babel,
    read_class_names,
    read_templates,
)


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def test_class_names(tmp_path):
    several = write(tmp_path / "en.json", {"mnist": ["0", "1"], "imagenet1k": ["tench", "ax"]})
    assert read_class_names(several, "imagenet1k") == ("tench", "ax")
    assert read_class_names(write(tmp_path / "a.json", {"imagenet1k": ["魚"]})) == ("魚",)
    assert read_class_names(write(tmp_path / "b.json", ["x", "y"])) == ("x", "y")
    (tmp_path / "c.txt").write_text("great white shark\n\n ray \n", encoding="utf-8")
    assert read_class_names(tmp_path / "c.txt") == ("great white shark", "ray")


def test_templates(tmp_path):
    path = write(tmp_path / "t.json", {"imagenet1k": ["صورة {c}", "a {c}."]})
    assert read_templates(path) == ("صورة {}", "a {}.")
    path = write(tmp_path / "babel.json", {"DE": ["Foto von {} ."], "FR": [" {} "]})
    assert read_templates(path, "DE") == ("Foto von {} .",)


@pytest.mark.parametrize(
    ("value", "dataset", "message"),
    [
        ({"a": ["x"], "b": ["y"]}, None, "it holds several lists; choose one of a, b"),
        ({"a": ["x"]}, "c", "there is no 'c'; choose one of a"),
        ({"a": {"x": 1}}, "a", 'expected a list of texts, found {"x": 1}'),
        ([1, 2], None, "expected a list of texts, found"),
        ([], None, "expected a list of texts, found"),
        (["a {c} and {}"], None, "the template 'a {} and {}' has 2 places for the class name"),
        (["a"], None, "the template 'a' has 0 places"),
    ],
)
def test_malformed_lists(tmp_path, value, dataset, message):
    with pytest.raises(ValueError) as error:
        read_templates(write(tmp_path / "x.json", value), dataset)
    assert str(error.value).startswith(f"{tmp_path / 'x.json'}: ") and message in str(error.value)


def test_files_that_are_not_there_or_not_json(tmp_path):
    for name in ("x.json", "x.txt"):
        with pytest.raises(ValueError, match=f"{name}: no such file"):
            read_class_names(tmp_path / name)
    (tmp_path / "x.json").write_text("[1,")
    with pytest.raises(ValueError, match="x.json: not JSON"):
        read_class_names(tmp_path / "x.json")


def test_babel(tmp_path):
    path = write(tmp_path / "babel.json", {"DE": [[1, 2, 7], ["Goldfisch", "Hai", "Hahn"]]})
    classes = read_babel(path, "DE")
    assert classes == Classes(("Goldfisch", "Hai", "Hahn"), (1, 2, 7))
    assert classes.positions([7]) == (2,) and classes.positions([3]) == ()
    for value, message in (
        ([], "expected an object with a key for each language"),
        ({"FR": [[1], ["un"]]}, "there is no 'DE'; choose one of FR"),
        ({"DE": [["a"], ["b"]]}, "expected a list of class indices and a list of their names"),
        ({"DE": [[1], ["a"], ["b"]]}, "expected a list of class indices"),
        ({"DE": [[1, 2], ["a"]]}, "has 1 names for 2 different classes"),
        ({"DE": [[1, 1], ["a", "b"]]}, "has 2 names for 1 different classes"),
    ):
        with pytest.raises(ValueError, match=message):
            read_babel(write(path, value), "DE")


def test_published_files_are_read(shared):
    stored = shared / "data/zero_shot_text"
    names = {}
    for language in ("en", "ar", "cn", "it", "jp"):
        path = stored / "clip_benchmark" / f"{language}_classnames.json"
        names[language] = read_class_names(path, "imagenet1k")
        templates = path.with_name(f"{language}_zeroshot_classification_templates.json")
        assert len(names[language]) == 1000 and len(read_templates(templates, "imagenet1k")) > 30
    entries = json.loads((stored / "imagenet_classes.json").read_text())
    assert names["en"] == tuple(x["clip_name"] for x in entries)
    babel = stored / "clip_benchmark" / "babel_imagenet.json"
    languages = json.loads(babel.read_text())
    assert len(languages) == 93
    for language, (indices, _) in languages.items():
        classes = read_babel(babel, language)
        assert len(classes.names) == len(indices)
        assert classes.positions(range(1000)) == tuple(range(len(indices)))
    prompts = json.loads((babel.with_name("nllb_dist13b_prompts.json")).read_text())
    for language in prompts:
        assert len(read_templates(babel.with_name("nllb_dist13b_prompts.json"), language)) == 80


def test_labels_of_the_data_mean_classes():
    classes = Classes(("ant", "bee", "ant"))
    assert classes.positions(["ant"]) == (0, 2) and classes.positions([1, "bee"]) == (1,)
    assert classes.positions([]) == ()
    for label in ("wasp", 3, -1):
        with pytest.raises(ValueError, match=f"the label {label!r} is not one of the 3 classes"):
            classes.positions([label])
    folders = Classes(("analog clock", "digital clock", "axe"), ("clock", "clock", "axe"))
    assert folders.positions(["clock"]) == (0, 1)
    assert folders.positions(["banana", 0, "axe"]) == (2,)
    with pytest.raises(ValueError, match="2 class names and 1 labels"):
        Classes(("a", "b"), (1,))
    with pytest.raises(ValueError, match="there are no class names"):
        Classes(())


def test_fields_that_hold_labels():
    for field, expected in (
        ("ant", ("ant",)),
        (3, (3,)),
        (np.int64(3), (3,)),
        (np.array([1, 2]), (1, 2)),
        (np.array(5), (5,)),
        (["a", "b"], ("a", "b")),
        ([], ()),
        (np.zeros(0, np.int64), ()),
        (None, None),
        (True, None),
        (1.0, None),
        ([1, None], None),
        ({"a": 1}, None),
    ):
        assert label_values(field) == expected
