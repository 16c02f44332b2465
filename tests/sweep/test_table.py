"""Tables of a sweep, against figures worked out by hand."""

import json
import math

import pytest
from etils import epath
from scipy import stats

from siglip2_jax.sweep.runs import Run
from siglip2_jax.sweep.statistics import Difference, Spread, paired, spread
from siglip2_jax.sweep.table import LOWER_IS_BETTER, compare_arms, gather, read_scores

SCORES = {("a", 0): 0.5, ("b", 0): 0.6, ("a", 1): 0.3, ("b", 1): 0.6, ("a", 2): 0.1}


@pytest.fixture
def runs(tmp_path) -> list[Run]:
    """Two arms with three seeds, of which the last run has not finished."""
    runs = []
    for (arm, seed), score in {**SCORES, ("b", 2): 0.9}.items():
        workdir = epath.Path(tmp_path) / arm / f"seed{seed}"
        rows = [
            {"step": 0, "eval/val/top1": 0.0},
            {"step": 5, "loss": 1.0, "eval/val/top1": score + 0.05, "mfu": 0.1},
            {"step": 10, "loss": 2.0 + seed, "eval/val/top1": score, "eval/val/rmse": score},
        ]
        steps = 5 if (arm, seed) == ("b", 2) else 10
        (workdir / "checkpoints" / str(steps) / "params").mkdir(parents=True)
        lines = [json.dumps(row) for row in rows]
        (workdir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        runs.append(Run(arm, seed, workdir, (), 10))
    return runs


def test_spreads_and_paired_differences():
    """The interval is that of a t-test: its p-value at either end is 5 %."""
    assert spread([1.0, 2.0, 6.0]) == Spread(3.0, pytest.approx(math.sqrt(7.0), rel=1e-12))
    assert spread([2.5]) == Spread(2.5, None)
    values, base = {0: 1.2, 1: 2.0, 2: 3.9, 7: 5.0}, {0: 1.0, 1: 2.5, 2: 3.0, 9: 0.0}
    mean, low, high = paired(values, base)
    pairs = [0.2, -0.5, 0.9]
    assert mean == pytest.approx(0.2, rel=1e-12)
    for end in (low, high):
        assert stats.ttest_1samp(pairs, end).pvalue == pytest.approx(0.05, rel=1e-9)
    assert low < mean < high
    assert paired({0: 2.0}, {0: 0.5}) == Difference(1.5, None, None)
    assert paired({0: 2.0}, {1: 0.5}) is None


def test_last_and_best_of_scores_and_losses(runs):
    scores = read_scores(runs[0].workdir)
    assert scores["last"] == {"loss": 2.0, "eval/val/top1": 0.5, "eval/val/rmse": 0.5}
    assert scores["best"] == {"loss": 1.0, "eval/val/top1": 0.55, "eval/val/rmse": 0.5}


@pytest.mark.parametrize(
    ("metric", "lower"),
    [
        ("loss/sigmoid", True),
        ("eval/depth/rmse", True),
        ("eval/normals/angular_rmse", True),
        ("eval/glossary/top1", False),
        ("eval/val/image_to_text@10", False),
        ("eval/val/precision", False),
    ],
)
def test_lower_is_better_for_losses_and_errors(metric, lower):
    assert bool(LOWER_IS_BETTER.fullmatch(metric)) == lower


def test_unfinished_runs_are_listed_and_left_out(runs):
    table = gather(runs)
    assert table.unfinished == [(runs[-1], 5)]
    assert {cell.arm: cell.seeds for cell in table.last} == {"a": (0, 1, 2), "b": (0, 1)}
    cells = {(cell.metric, cell.arm): cell for cell in table.last}
    assert cells["eval/val/top1", "a"].difference is None
    mean, low, high = cells["eval/val/top1", "b"].difference
    assert (mean, low + high) == (pytest.approx(0.2), pytest.approx(0.4))
    assert high - mean == pytest.approx(stats.t.ppf(0.975, 1) * 0.1, rel=1e-9)


def test_markdown_and_json_hold_the_same(runs):
    table = gather(runs)
    text = table.as_markdown()
    lines = text.split("\n")
    assert lines[0] == "| metric | arm | seeds | last | last - a | best | best - a |"
    assert [line.split(" | ")[0] for line in lines[2:8]] == (
        2 * ["| eval/val/rmse"] + 2 * ["| eval/val/top1"] + 2 * ["| loss"]
    )
    assert lines[4] == "| eval/val/top1 | a | 3 | 0.3 ± 0.2 |  | 0.35 ± 0.2 |  |"
    assert lines[5].startswith("| eval/val/top1 | b | 2 | 0.6 ± 0 | +0.2 (-1.07 to +1.47) | 0.65")
    assert lines[-1] == "Not finished: b seed 2 (step 5 of 10)."
    plain = json.loads(json.dumps(table.as_json()))
    assert plain["unfinished"] == [{"arm": "b", "seed": 2, "step": 5, "steps": 10}]
    (row,) = [x for x in plain["table"] if (x["metric"], x["arm"]) == ("eval/val/top1", "b")]
    assert row["seeds"] == [0, 1] and row["last"]["mean"] == pytest.approx(0.6)
    assert row["last"]["difference"]["mean"] == pytest.approx(0.2)


def test_a_metric_of_some_arms_is_compared_where_it_can_be():
    cells = compare_arms({"a": {0: {"x": 1.0}}, "b": {0: {"x": 3.0, "loss/y": 2.0}}})
    assert [(cell.metric, cell.arm) for cell in cells] == [("x", "a"), ("x", "b"), ("loss/y", "b")]
    assert cells[1].difference == Difference(2.0, None, None) and cells[2].difference is None


def test_a_sweep_that_has_not_begun(tmp_path):
    table = gather([Run("a", 0, epath.Path(tmp_path) / "a", (), 10)])
    assert table.as_markdown() == "Not finished: a seed 0 (step 0 of 10)."
