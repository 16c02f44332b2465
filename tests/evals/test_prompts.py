"""The prompts of zero-shot classification."""

import json
import re
import string

import numpy as np
import pytest
from evals.hashing import Hashing

from siglip2_jax.evals import prompts
from siglip2_jax.evals.prompts import (
    CLIP_PAPER,
    OPENAI_TEMPLATES,
    canonicalize,
    choose_templates,
    embed_labels,
    fill_prompts,
    name_templates,
)


def test_eighty_templates_with_one_place_each():
    assert len(OPENAI_TEMPLATES) == len(set(OPENAI_TEMPLATES)) == 80
    assert all(template.count("{}") == 1 for template in OPENAI_TEMPLATES)
    assert all(template.count("{") == template.count("}") == 1 for template in OPENAI_TEMPLATES)


def test_templates_are_the_published_ones(shared):
    """CLIP Benchmark stores the same ones, and adds the bare label."""
    stored = json.loads((shared / "data/zero_shot_text/clip_templates.json").read_text())
    assert sorted(OPENAI_TEMPLATES) == sorted(set(stored["clip_paper"]) - {"{}"})
    assert sorted(CLIP_PAPER) == sorted(stored["clip_paper"])


def published_rule(text: str, keep: str = "") -> str:
    """The rule in its own words: underscore to space, no punctuation, lower, single spaces."""
    parts = text.replace("_", " ").split(keep) if keep else [text.replace("_", " ")]
    kept = ("".join(c for c in part if c not in string.punctuation) for part in parts)
    return re.sub(r"\s+", " ", keep.join(kept).lower()).strip()


NASTY = [
    "yellow lady's slipper",
    "kite (bird of prey)",
    "Granny_Smith",
    "__init__",
    "  C++ \t& C#  ",
    "{}",
    "{{}}",
    "}{",
    "rock 'n' roll, jazz",
    "ÉCOLE, école",
    "ΟΔΟΣ,ΟΔΟΣ",
    "İstanbul",
    "你好，世界！",
    "صورة سيئة لـ",
    "non\u00a0breaking\u2003space",
    "line\nbreak\x1cand\x85more",
    "",
    "...",
]


@pytest.mark.parametrize("keep", ["", ",", "{}"])
def test_canonical_form_is_the_published_one(keep):
    rng = np.random.default_rng(0)
    letters = list(string.punctuation + " \t\u3000aBßΣ漢{},,_")
    noise = ["".join(rng.choice(letters, 12)) for _ in range(300)]
    for text in [*NASTY, *noise]:
        assert canonicalize(text, keep) == published_rule(text, keep), repr(text)


def test_names_and_templates_become_canonical():
    names = ["Great_White Shark, white shark, man-eater", "Geoffroy's spider monkey"]
    found = fill_prompts(names, ["A photo of a {}.", "{}", "{}'s {photo}!"], canonical=True)
    assert found == [
        ("a photo of a great white shark", "great white shark", "great white sharks photo"),
        (
            "a photo of a geoffroys spider monkey",
            "geoffroys spider monkey",
            "geoffroys spider monkeys photo",
        ),
    ]
    assert fill_prompts(names[:1], ["A {}."]) == [(f"A {names[0]}.",)]


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        (["a"], ["a photo"], "the template 'a photo' has 0 places for the class name; expected"),
        (["a"], ["{}", "{} {}"], "the template '{} {}' has 2 places"),
        ([], ["{}"], "0 class names and 1 templates make no prompts"),
        (["a"], [], "1 class names and 0 templates make no prompts"),
        (["a", "..., b"], ["{}"], r"the class name '\.\.\., b' has nothing but punctuation before"),
    ],
)
def test_prompts_that_cannot_be_made(names, templates, message):
    with pytest.raises(ValueError, match=message.replace("{}", r"\{\}")):
        fill_prompts(names, templates, canonical=True)


def test_blocks_give_what_the_whole_gives(monkeypatch):
    names = [f"Thing {i % 40}" for i in range(50)]
    templates = ("a {}.", "the {}", "{}")
    whole = embed_labels(Hashing(), names, templates)
    model = Hashing()
    monkeypatch.setattr(prompts, "PROMPTS_AT_ONCE", 25)
    found = embed_labels(model, names, templates)
    np.testing.assert_array_equal(found, whole)
    assert sum(model.counts) == 40 * 3 and max(model.counts) <= 25
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(found[:10], found[40:])  # same name, same row


def test_imagenet_matrix_is_that_of_an_independent_script(shared):
    """1,000 classes by 81 templates, from the published files by the rule above."""
    stored = shared / "data/zero_shot_text"
    classes = json.loads((stored / "imagenet_classes.json").read_text())
    templates = json.loads((stored / "clip_templates.json").read_text())["clip_paper"]
    names = [entry["clip_name"] for entry in sorted(classes, key=lambda x: x["index"])]
    model = Hashing()
    found = embed_labels(model, names, CLIP_PAPER, canonical=True)
    assert found.shape == (1000, 24) and len(model.counts) > 5
    for i in [*range(0, 1000, 13), 999]:
        name = published_rule(names[i], ",").split(",")[0]
        filled = [published_rule(t, "{}").replace("{}", name) for t in templates]
        mean = np.mean([model.row(text).astype(np.float64) for text in filled], axis=0)
        np.testing.assert_allclose(found[i], mean / np.linalg.norm(mean), rtol=0, atol=2e-7)
    assert len(np.unique(found, axis=0)) == 998  # two names stand twice: sunglasses and missile


def test_templates_have_names():
    assert choose_templates("openai") == OPENAI_TEMPLATES and len(OPENAI_TEMPLATES) == 80
    assert choose_templates("clip_paper") == (*OPENAI_TEMPLATES, "{}")
    assert choose_templates("a photo of a {}") == ("a photo of a {}",)
    for word in ("clip", "a photo", "{} or {}"):
        with pytest.raises(
            ValueError, match="is not the name of templates; expected openai, clip_pape"
        ):
            choose_templates(word)
    assert name_templates(list(CLIP_PAPER)) == "clip_paper"
    assert name_templates(("a {}", "{}")) == "a {} / {}"
    assert name_templates(OPENAI_TEMPLATES[1:]) == "79 from 'a photo of many {}.' on"
