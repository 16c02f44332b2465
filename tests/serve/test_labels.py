"""`/v1/classify`: probabilities equal the Python API's, per image."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from serve.running import base64_of, data_uri, encoded, serving

from siglip2_jax.evals.prompts import embed_labels
from siglip2_jax.inference.calibration import Calibration, Goal
from siglip2_jax.serve.service import Service
from siglip2_jax.serve.settings import LabelSet, Settings

pytestmark = pytest.mark.serve

FILES = [encoded(20, 31), encoded(50, 8, 1), encoded(9, 9, 2)]
IMAGES = [base64_of(x) for x in FILES]
LABELS = ["dog", "cat", "bird"]


def classify(client, **body):
    answer = client.post("/v1/classify", json={"images": IMAGES} | body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def check(results, expected, labels=LABELS):
    for result, row in zip(results, expected, strict=True):
        scores = {x["label"]: x["probability"] for x in result["labels"]}
        np.testing.assert_allclose([scores[x] for x in labels], row, atol=1e-6, rtol=1e-4)
        values = [x["probability"] for x in result["labels"]]
        assert values == sorted(values, reverse=True)


def test_labels_of_images(client, model):
    answer = classify(client, labels=LABELS)
    rows = model.embed_images(FILES, max_num_patches=16)
    check(answer["results"], model.probabilities(rows, model.embed_texts(LABELS)))
    assert answer["calibrated"] is False and answer["threshold"] is None
    assert [x["index"] for x in answer["results"]] == [0, 1, 2]
    sizes = [(x["width"], x["height"]) for x in answer["results"]]
    assert sizes == [(31, 20), (8, 50), (9, 9)]
    grids = [model.preprocess.grid((height, width), 16) for width, height in sizes]
    assert [tuple(x["grid"]) for x in answer["results"]] == grids
    assert "accepted" not in answer["results"][0]


def test_templates(model, client):
    templates = ["a {}", "one {} there"]
    answer = classify(client, labels=LABELS, templates=templates)
    rows = model.embed_images(FILES, max_num_patches=16)
    check(answer["results"], model.probabilities(rows, embed_labels(model, LABELS, templates)))


def test_a_named_set(client, model):
    answer = classify(client, label_set="animals", max_num_patches=64)
    rows = model.embed_images(FILES, max_num_patches=64)
    texts = embed_labels(model, LABELS, ["a {}", "the {}"])
    check(answer["results"], model.probabilities(rows, texts))
    assert answer["max_num_patches"] == 64


def test_a_bad_image_has_an_error_of_its_own(client, model):
    broken = base64_of(FILES[0][:60])
    answer = classify(client, images=[IMAGES[0], broken, "no base64!", IMAGES[2]], labels=LABELS)
    rows = model.embed_images([FILES[0], FILES[2]], max_num_patches=16)
    good = [answer["results"][i] for i in (0, 3)]
    check(good, model.probabilities(rows, model.embed_texts(LABELS)))
    for i in (1, 2):
        result = answer["results"][i]
        assert set(result) == {"index", "error"} and result["index"] == i
        assert result["error"]["code"] == "invalid_image"
        assert result["error"]["param"] == f"images[{i}]"
    alone = client.post("/v1/classify", json={"images": broken, "labels": LABELS})
    assert alone.status_code == 400 and alone.json()["error"]["param"] == "images[0]"


def test_one_pixel(client, model):
    pixel = encoded(1, 1)
    answer = classify(client, images={"image": data_uri(pixel)}, labels=LABELS)
    rows = model.embed_images(pixel, max_num_patches=16)
    check(answer["results"], model.probabilities(rows, model.embed_texts(LABELS)))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "labels"),
        ({"labels": LABELS, "label_set": "animals"}, "labels"),
        ({"label_set": "plants"}, "label_set"),
        ({"label_set": "animals", "templates": ["{}"]}, "templates"),
        ({"labels": []}, "labels"),
        ({"labels": ["a", ""]}, "labels[1]"),
        ({"labels": LABELS, "templates": ["no place"]}, "templates"),
        ({"labels": LABELS, "templates": "unheard"}, "templates"),
        ({"labels": [f"label {i}" for i in range(65)]}, "labels"),
        ({"labels": LABELS, "templates": "openai"}, "labels"),
        ({"labels": LABELS, "max_num_patches": 32}, "max_num_patches"),
        ({"labels": LABELS, "images": []}, "images"),
        ({"labels": LABELS, "images": 7}, "images"),
    ],
)
def test_what_cannot_be_classified(client, body, param):
    answer = client.post("/v1/classify", json={"images": IMAGES} | body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def calibration(**changes) -> Calibration:
    values = Calibration(
        temperature=20.0,
        bias=-1.0,
        temperature_interval=(10.0, 30.0),
        bias_interval=(-2.0, 0.0),
        goal=Goal("precision", 0.9, 0.3, 0.95, (0.8, 1.0), 12),
        labels=tuple(LABELS),
        templates=("a {}",),
        images=20,
        matches=20,
        others=40,
        warnings=(),
        model={},
        max_num_patches=64,
    )
    return dataclasses.replace(values, **changes)


def test_calibrated_sets(model):
    fitted = calibration()
    pairs = calibration(labels=(), templates=(), max_num_patches=16, temperature=3.0, goal=None)
    labels = {"pets": LabelSet(fitted.labels, fitted.templates, fitted)}
    with serving(model, labels=labels, calibration=pairs) as client:
        rows = model.embed_images(FILES, max_num_patches=64)
        texts = embed_labels(model, LABELS, ["a {}"])
        expected = model.probabilities(rows, texts, calibration=fitted)
        for body in ({"label_set": "pets"}, {"labels": LABELS, "templates": ["a {}"]}):
            answer = classify(client, **body)
            assert answer["calibrated"] and answer["threshold"] == 0.3
            assert answer["max_num_patches"] == 64
            check(answer["results"], expected)
            for result, row in zip(answer["results"], expected, strict=True):
                assert set(result["accepted"]) == {
                    x for x, p in zip(LABELS, row, strict=True) if p >= 0.3
                }
        assert 0 < (expected >= 0.3).sum() < expected.size  # or nothing was shown by it
        refused = client.post(
            "/v1/classify", json={"images": IMAGES, "label_set": "pets", "max_num_patches": 16}
        )
        assert refused.status_code == 400
        assert "calibrated at 64" in refused.json()["error"]["message"]

        answer = classify(client, labels=["dog"])  # not the set: any text, as fitted to pairs
        rows = model.embed_images(FILES, max_num_patches=16)
        one = model.probabilities(rows, model.embed_texts(["dog"]), calibration=pairs)
        check(answer["results"], one, ["dog"])
        assert answer["threshold"] == 0.5


def test_calibrations_must_fit_the_server(model):
    fitted = calibration(max_num_patches=256)
    labels = {"pets": LabelSet(fitted.labels, fitted.templates, fitted)}
    with pytest.raises(ValueError, match="'pets' was calibrated at 256 patches"):
        Service(model, Settings(budgets=(16, 64), labels=labels))
    hopeless = calibration(goal=Goal("precision", 0.99, None, None, (0.0, 0.5), 0))
    with pytest.raises(ValueError, match=r"no threshold .* reaches a precision of 0\.99"):
        Service(model, Settings(budgets=(64,), calibration=hopeless))
