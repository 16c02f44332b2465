"""Held-out check of calibrations on data whose truth is known."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from siglip2_jax.evals.calibrate import Pairs, fit

SCRIPT = Path(__file__).parents[2] / "scripts" / "calibration_evidence.py"


@pytest.fixture(scope="module")
def evidence():
    spec = importlib.util.spec_from_file_location("calibration_evidence", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def draw_pairs(images: int, labels: int) -> Pairs:
    rng = np.random.default_rng(0)
    cosines = rng.normal(0.15, 0.1, images * labels)
    matches = rng.random(len(cosines)) < expit(40 * cosines - 12)
    return Pairs(cosines, matches, np.repeat(np.arange(images), labels))


def test_halves_share_no_image(evidence):
    pairs = draw_pairs(9, 4)
    some, others = evidence.halves(pairs, 3)
    assert (some.image.max() + 1, others.image.max() + 1) == (4, 5)
    assert sorted([*some.cosines, *others.cosines]) == sorted(pairs.cosines)
    for part in (some, others):
        for i in range(part.image.max() + 1):
            (place,) = np.nonzero(pairs.cosines == part.cosines[part.image == i][0])[0]
            first = place - place % 4
            assert set(part.cosines[part.image == i]) == set(pairs.cosines[first : first + 4])


@pytest.mark.parametrize(("metric", "wanted"), [("precision", 0.7), ("recall", 0.8)])
def test_a_goal_is_tried_on_the_other_half(evidence, metric, wanted):
    pairs = draw_pairs(60, 8)
    found = evidence.try_goal(pairs, metric, wanted, (10.0, -1.0), 2)
    values, inside = [], 0
    for seed in range(2):
        some, others = evidence.halves(pairs, seed)
        result = fit(some, (metric, wanted), seed)
        accepted = [
            match
            for cosine, match in zip(others.cosines, others.matches, strict=True)
            if expit(result.temperature * cosine + result.bias) >= result.goal.threshold
        ]
        total = len(accepted) if metric == "precision" else others.matches.sum()
        values.append(sum(accepted) / total)
        low, high = result.goal.interval
        inside += low <= values[-1] <= high
    assert found["unseen_mean"] == pytest.approx(np.mean(values))
    assert found["unseen_range"] == pytest.approx([min(values), max(values)])
    assert (found["inside"], found["with_threshold"]) == (inside, 2)
    own = [(h.cosines >= 0.1, h.matches) for _, h in (evidence.halves(pairs, s) for s in (0, 1))]
    assert found["own_accepts_mean"] == np.mean([x.sum() for x, _ in own])
    shares = [y[x].mean() if metric == "precision" else x[y].mean() for x, y in own]
    assert found["own_mean"] == pytest.approx(np.mean(shares))
    assert f"| {metric} {wanted:g} | {np.mean(values):.3f} (" in evidence.table([found])


def test_both_data_sets_are_read(evidence, tmp_path):
    for folder in ("labels", "captions"):
        (tmp_path / folder).mkdir()
    rows = [
        {"file": "a.jpg", "name": "dog", "captions": ["x", "y", "z"], "split": "val"},
        {"file": "b.jpg", "name": "cat", "captions": ["y", "w"], "split": "val"},
        {"file": "c.jpg", "name": "cow", "captions": ["v"], "split": "train"},
    ]
    text = "\n".join(map(json.dumps, rows))
    (tmp_path / "labels" / "labels.jsonl").write_text(text)
    (tmp_path / "captions" / "annotations.jsonl").write_text(text)
    labelled = evidence.read_pairs(tmp_path / "labels")
    assert labelled.texts == ["cat", "dog"] and labelled.labels
    assert labelled.verdicts == {(0, 0): False, (0, 1): True, (1, 0): True, (1, 1): False}
    captioned = evidence.read_pairs(tmp_path / "captions")
    assert captioned.texts == ["w", "x", "y"] and not captioned.labels
    assert [x for x, verdict in captioned.verdicts.items() if verdict] == [
        *((0, 1), (0, 2)),
        *((1, 0), (1, 2)),
    ]
    assert captioned.images[0] == str(tmp_path / "captions" / "images" / "a.jpg")
