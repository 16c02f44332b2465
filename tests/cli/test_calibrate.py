"""`siglip2 calibrate`, and `classify` by what it writes."""

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image
from scipy.special import expit

from siglip2_jax import load
from siglip2_jax.inference import read_calibration

SMALL = ("--batch-size", 4, "--max-num-patches", 16)


@pytest.fixture
def table(model_dir, tmp_path):
    """Images whose labels are those that a random model scores highest, but for two images."""
    rng, model = np.random.default_rng(0), load(model_dir)
    paths = []
    for i in range(24):
        pixels = rng.integers(0, 256, (24, 24, 3), np.uint8) // (1 + i % 5)
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(pixels).save(paths[-1])
    images = model.embed_images(paths, max_num_patches=16, batch_size=4)
    labels = ["a dog", "a cat"]
    labels = ["a dog", "a cat"]
    cosines = images @ model.embed_texts(labels).T
    holds = cosines > np.median(cosines)
    holds[:2] ^= True
    with (tmp_path / "table.jsonl").open("w") as file:
        for path, row in zip(paths, holds, strict=True):
            names = [label for label, x in zip(labels, row, strict=True) if x]
            print(json.dumps({"image": path.name, "labels": names}), file=file)
    return tmp_path / "table.jsonl"


def test_classify_has_the_calibrated_probabilities(siglip2, model_dir, table, tmp_path):
    out, plot = tmp_path / "c.json", tmp_path / "plot.svg"
    options = ("--examples", table, "--labels", "a dog,a cat", "--precision", 0.6, "--out", out)
    result = siglip2("calibrate", model_dir, *options, "--plot", plot, "--json", *SMALL)
    assert result.code == 0, result.err
    answer = json.loads(result.out)
    calibration = read_calibration(out)
    assert answer["temperature"] == calibration.temperature > 0
    matches = sum(len(json.loads(line)["labels"]) for line in table.read_text().splitlines())
    counts = calibration.images, calibration.matches, calibration.others
    assert counts == (24, matches, 48 - matches)
    assert calibration.labels == ("a dog", "a cat") and calibration.goal.wanted == 0.6
    assert ET.fromstring(plot.read_bytes()).tag.endswith("svg")

    image = tmp_path / "3.png"
    result = siglip2("classify", model_dir, image, "--calibration", out, "--json", *SMALL)
    assert result.code == 0, result.err
    (found,) = json.loads(result.out)["results"]
    model = load(model_dir)
    row = model.embed_images([image], max_num_patches=16)
    cosines = (row @ model.embed_texts(["a dog", "a cat"]).T)[0].astype(np.float64)
    expected = expit(calibration.temperature * cosines + calibration.bias)
    for label, cosine, probability in zip(["a dog", "a cat"], cosines, expected, strict=True):
        assert found["scores"][label] == pytest.approx(probability, rel=1e-3)
        accepted = label in found["accepted"]
        assert accepted == (cosine >= calibration.cosine_threshold)


def test_another_model_is_refused(siglip2, model_dir, table, tmp_path):
    out = tmp_path / "c.json"
    assert siglip2("calibrate", model_dir, "--examples", table, "--out", out, *SMALL).code == 0
    content = json.loads(out.read_text())
    content["model"]["weights"] = "others"
    out.write_text(json.dumps(content))
    result = siglip2("classify", model_dir, tmp_path / "3.png", "--calibration", out, *SMALL)
    assert result.code == 2
    assert "was fitted with another model: weights was 'others'" in result.err


def test_labels_beside_a_calibration_are_refused(siglip2, model_dir, table, tmp_path):
    out = tmp_path / "c.json"
    assert siglip2("calibrate", model_dir, "--examples", table, "--out", out, *SMALL).code == 0
    options = ("--calibration", out, "--labels", "a")
    result = siglip2("classify", model_dir, tmp_path / "3.png", *options, *SMALL)
    assert result.code == 2 and "holds for its own labels" in result.err


def test_a_file_of_something_else(siglip2, model_dir, tmp_path):
    (tmp_path / "c.json").write_text('{"format": "other"}')
    options = ("--calibration", tmp_path / "c.json")
    result = siglip2("classify", model_dir, tmp_path / "3.png", *options, *SMALL)
    assert result.code == 2 and "is no calibration of this version" in result.err
