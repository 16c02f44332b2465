"""`siglip2 classify`: the labels and probabilities that the Python API gives."""

import json

import numpy as np
import pytest

from siglip2_jax import load
from siglip2_jax.evals.prompts import OPENAI_TEMPLATES

SMALL = ("--batch-size", 4, "--max-num-patches", 16)


@pytest.fixture(scope="module")
def model(model_dir):
    return load(model_dir)


def expected_scores(model, image, labels, templates=("{}",)) -> dict:
    row = model.embed_images([image], max_num_patches=16, batch_size=4)
    means = []
    for label in labels:
        prompts = [template.replace("{}", label) for template in templates]
        means.append(model.embed_texts(prompts).mean(axis=0))
    texts = np.stack([x / np.linalg.norm(x) for x in means])
    return dict(zip(labels, model.probabilities(row, texts)[0].tolist(), strict=True))


def test_json_holds_every_label(siglip2, model, model_dir, photos, tmp_path):
    # One label a line, and more from the option; a repetition counts once.
    (tmp_path / "labels.txt").write_text("a dog\n\n a cat \n", encoding="utf-8")
    (photos / "b.jpg").write_bytes(b"")
    images = (photos / "a.png", photos / "b.jpg", photos / "deeper")
    options = ("--labels-file", tmp_path / "labels.txt", "--labels", "a red bus, a dog", "--json")
    result = siglip2("classify", model_dir, *images, *options, *SMALL)
    assert result.code == 0
    assert result.err.count("\n") == 1 and result.err.startswith("siglip2: skipped: ")
    answer = json.loads(result.out)
    assert answer["preproc"] == "reference" and answer["text_norm"] == "reference"
    assert answer["weights"] == "float32"
    first, broken, last = answer["results"]
    assert broken["image"] == str(photos / "b.jpg") and "zero bytes" in broken["error"]
    for found, name in ((first, "a.png"), (last, "deeper/h.png")):
        assert found["image"] == str(photos / name)
        expected = expected_scores(model, photos / name, ["a dog", "a cat", "a red bus"])
        assert found["scores"] == pytest.approx(expected, rel=1e-4)
        scores = list(found["scores"].values())
        assert scores == sorted(scores, reverse=True)
        assert found["label"] == next(iter(found["scores"]))


def test_openai_templates_are_averaged(siglip2, model, model_dir, photos):
    options = ("--labels", "dog,cat", "--templates", "openai", "--json")
    result = siglip2("classify", model_dir, photos / "a.png", *options, *SMALL)
    (found,) = json.loads(result.out)["results"]
    expected = expected_scores(model, photos / "a.png", ["dog", "cat"], OPENAI_TEMPLATES)
    assert found["scores"] == pytest.approx(expected, rel=1e-4)


def test_prompts_of_ones_own(siglip2, model, model_dir, photos):
    options = ("--labels", "dog,cat", "--json", "--templates", "a photo of a {}")
    result = siglip2("classify", model_dir, photos / "a.png", *options, *SMALL)
    answer = json.loads(result.out)
    expected = expected_scores(model, photos / "a.png", ["dog", "cat"], ["a photo of a {}"])
    assert answer["results"][0]["scores"] == pytest.approx(expected, rel=1e-4)
    assert answer["templates"] == "a photo of a {}"
    options = (*options, "--templates", "{}")
    result = siglip2("classify", model_dir, photos / "a.png", *options, *SMALL)
    expected = expected_scores(model, photos / "a.png", ["dog", "cat"], ["a photo of a {}", "{}"])
    assert json.loads(result.out)["results"][0]["scores"] == pytest.approx(expected, rel=1e-4)


def test_a_line_for_each_image(siglip2, model_dir, photos):
    images = (photos / "*.png", photos / "d.webp")
    options = ("--labels", "a,b,c", "--top", 2, *SMALL)
    result = siglip2("classify", model_dir, *images, *options)
    assert result.code == 0 and result.err == ""
    lines = result.out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        str(photos / "a.png"),
        str(photos / "d.webp"),
    ]
    assert all(line.count("%") == 2 for line in lines)


def test_no_readable_image_is_a_failure(siglip2, model_dir, photos):
    (photos / "a.png").write_bytes(b"")
    result = siglip2("classify", model_dir, photos / "a.png", "--labels", "dog", *SMALL)
    assert result.code == 1 and result.out == ""
