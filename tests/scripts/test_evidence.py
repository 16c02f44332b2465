"""Evidence on parts of the recipe: measures of patches against hand counts, stop rule, tables."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "evidence.py"

# 8 x 4 patches of 10 pixels: a cat on the left half, two dogs at the corners of the right.
ROW = {
    "file": "a.jpg",
    "split": "val",
    "width": 80,
    "height": 40,
    "boxes": [
        {"category": "cat", "bbox": [0, 0, 40, 40], "iscrowd": 0}
        | {"segmentation": [[0, 0, 39, 0, 39, 39, 0, 39]]},
        {"category": "dog", "bbox": [60, 0, 20, 10], "iscrowd": 0}
        | {"segmentation": [[60, 0, 79, 0, 79, 9, 60, 9]]},
        {"category": "dog", "bbox": [70, 30, 10, 10], "iscrowd": 0}
        | {"segmentation": [[70, 30, 79, 30, 79, 39, 70, 39]]},
    ],
}


@pytest.fixture(scope="module")
def evidence():
    spec = importlib.util.spec_from_file_location("evidence", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    path = sys.path[:]
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = path


def test_average_precision(evidence):
    """Right ones at places 1, 3 and 4: precisions 1/1, 2/3 and 3/4."""
    scores = np.array([0.1, 0.9, 0.4, 0.6, 0.5])
    right = np.array([False, True, True, False, True])
    expected = (1 + 2 / 3 + 3 / 4) / 3
    assert evidence.patches.average_precision(scores, right) == pytest.approx(expected, rel=1e-12)


def test_patches_of_a_category_and_its_box(evidence):
    cat, dog = evidence.patches.queries(ROW, (4, 8))
    columns = np.arange(32) % 8
    assert (cat.patches == (columns < 4)).all() and cat.box == (0, 0, 0.5, 1)
    assert np.flatnonzero(dog.patches).tolist() == [6, 7, 31] and dog.box is None


def test_retrieval_and_pointing_between_the_best_and_the_worst(evidence):
    measure = evidence.patches.measure
    masks = {query.category: query.patches for query in evidence.patches.queries(ROW, (4, 8))}
    best = measure([ROW], [(4, 8)], lambda i, grid, name: masks[name] * 1.0)
    assert best == {"retrieval_ap": 1.0, "pointing": 1.0}
    worst = measure([ROW], [(4, 8)], lambda i, grid, name: masks[name] * -1.0)
    low = [np.mean([k / (32 - n + k) for k in range(1, n + 1)]) for n in (16, 3)]
    assert worst["pointing"] == 0 and worst["retrieval_ap"] == pytest.approx(np.mean(low))
    centre = evidence.patches.towards_the_centre(0, (4, 8), "")
    assert set(np.flatnonzero(centre == centre.max())) == {11, 12, 19, 20}


def test_ridge_regression_finds_what_patches_say(evidence, tmp_path):
    """Labels that are a linear function of the tokens are predicted for images left out."""
    probes = sys.modules["evidence_probes"]
    rng = np.random.default_rng(0)
    grid, count = (3, 4), 8
    tokens = rng.normal(size=(count, 12, 5)).astype(np.float32)
    features = SimpleNamespace(
        tokens=tokens, valid=np.ones((count, 12), bool), grid=np.array([grid] * count)
    )
    model = SimpleNamespace(image_features=lambda images, max_num_patches: features)
    truth = [(3 * x[:, :1] - 2 * x[:, 1:2] + 1).reshape(*grid, 1) for x in tokens]
    drawn = dict(probes.FrozenProbes(data="")._predicted(model, ["x"] * count, truth))
    assert sorted(drawn) == list(range(count))
    error = np.concatenate([(drawn[i] - truth[i]).ravel() for i in range(count)])
    assert 1e-4 < np.abs(error).max() < 0.25 < np.concatenate(truth).std()


def test_the_base_model_stops_when_its_scores_do(evidence, tmp_path, monkeypatch):
    """Best at the third of its measurements: two more are made, whatever the process does."""
    monkeypatch.setattr(evidence, "BASE_STEPS", 10)
    means, asked = iter([0.1, 0.2, 0.5, 0.4, 0.45, 0.49, 0.3]), []
    base = tmp_path / "base"

    def train(run) -> int:
        asked.append(run.arguments[-1])
        (base / "checkpoints" / str(run.steps) / "params").mkdir(parents=True)
        with (base / "metrics.jsonl").open("a") as file:
            row = dict.fromkeys(evidence.STOP, next(means))
            file.write(json.dumps({"step": run.steps} | row) + "\n")
        return 0

    assert evidence.train_base(["data=d"], tmp_path, train)
    assert asked == [f"steps={10 * i}" for i in range(1, 6)]
    assert evidence.train_base(["data=d"], tmp_path, train) and len(asked) == 5


def test_tables_are_made_of_the_numbers(evidence):
    def row(arm, seed, miou):
        return {"arm": arm, "seed": seed, "scores": {"eval/probe/camvid_miou": miou}}

    floors = {
        f"untrained model, seed {i}": {"eval/probe/camvid_miou": x}
        for i, x in enumerate((0.1, 0.2))
    }
    runs = [row("as_is", 0, 0.2), row("ssl", 0, 0.3), row("as_is", 1, 0.22), row("ssl", 1, 0.3)]
    lines = list(evidence.tables({"runs": runs, "floors": floors}))
    cells = {line.split(" | ")[0]: line.split(" | ")[1] for line in lines if " | " in line}
    assert cells["| untrained model"] == "15.0 ± 7.1"
    assert lines[2].startswith("| untrained model") and cells["| minus as_is"].startswith("camvid")
    assert lines[3].startswith("| as_is | 21.0 ± 1.4 |")
    assert lines[4].startswith("| ssl | 30.0 |")
    assert lines[-1].startswith("| ssl | +9.0 (-3.7 to +21.7) |")
