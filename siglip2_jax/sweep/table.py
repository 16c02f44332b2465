"""Scores of a sweep's runs in one table: last and best, with spreads over seeds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from siglip2_jax.data.text import read_rows
from siglip2_jax.sweep.runs import Run
from siglip2_jax.sweep.statistics import Difference, Spread, paired, spread
from siglip2_jax.train.metrics import METRICS

SCORES = re.compile(r"eval/.*|loss(/.*)?")
LOWER_IS_BETTER = re.compile(r"(.*[/_])?(loss|rmse|error|ece|brier|unparsed|unreadable)([/_].*)?")

Scores = Mapping[str, Mapping[int, Mapping[str, float]]]
"""Numbers by arm, seed and metric."""


class Cell(NamedTuple):
    """One metric of one arm.

    Attributes:
      metric: its name.
      arm: name of the arm.
      seeds: that have it.
      spread: over these seeds.
      difference: from the first arm; None for that arm itself, or where no seed has both.
    """

    metric: str
    arm: str
    seeds: tuple[int, ...]
    spread: Spread
    difference: Difference | None


def read_scores(workdir: epath.Path) -> dict[str, dict[str, float]]:
    """Losses and evaluators' scores of a run: the `last` and the `best`, each by metric.

    The best is the lowest of losses and errors (`LOWER_IS_BETTER`), and the highest of all else.
    """
    values: dict[str, list[float]] = {}
    for _, row in read_rows(workdir / METRICS):
        for name in filter(SCORES.fullmatch, row):
            values.setdefault(name, []).append(row[name])
    best = {k: (min if LOWER_IS_BETTER.fullmatch(k) else max)(x) for k, x in values.items()}
    return {"last": {name: x[-1] for name, x in values.items()}, "best": best}


def compare_arms(scores: Scores) -> list[Cell]:
    """Every metric of every arm, compared with the first arm seed by seed; scores first."""
    metrics = {name: None for seeds in scores.values() for x in seeds.values() for name in x}
    first, cells = next(iter(scores), ""), []
    for metric in sorted(metrics, key=lambda name: (name.startswith("loss"), name)):
        by_arm = {
            arm: {seed: x[metric] for seed, x in seeds.items() if metric in x}
            for arm, seeds in scores.items()
        }
        for arm, values in by_arm.items():
            if values:
                difference = None if arm == first else paired(values, by_arm[first])
                cells.append(
                    Cell(metric, arm, tuple(values), spread([*values.values()]), difference)
                )
    return cells


class Table(NamedTuple):
    """Results of a sweep.

    Attributes:
      last: cells of the last values.
      best: the same cells of the best values.
      unfinished: runs that are not in them, each with its step.
    """

    last: list[Cell]
    best: list[Cell]
    unfinished: list[tuple[Run, int]]

    def as_json(self) -> dict[str, Any]:
        """Plain values, for `json.dumps`."""
        rows = [
            {"metric": last.metric, "arm": last.arm, "seeds": list(last.seeds)}
            | {name: _plain(cell) for name, cell in (("last", last), ("best", best))}
            for last, best in zip(self.last, self.best, strict=True)
        ]
        unfinished = [
            {"arm": run.arm, "seed": run.seed, "step": step, "steps": run.steps}
            for run, step in self.unfinished
        ]
        return {"table": rows, "unfinished": unfinished}

    def as_markdown(self) -> str:
        """One line a metric and arm, and a line on the runs that are not finished."""
        lines = []
        if self.last:
            first = self.last[0].arm
            lines += [
                f"| metric | arm | seeds | last | last - {first} | best | best - {first} |",
                "|---|---|---|---|---|---|---|",
            ]
        for last, best in zip(self.last, self.best, strict=True):
            cells = [x for cell in (last, best) for x in (_spread(cell), _difference(cell))]
            line = [last.metric, last.arm, str(len(last.seeds)), *cells]
            lines.append(f"| {' | '.join(line)} |")
        if self.unfinished:
            runs = [
                f"{run.arm} seed {run.seed} (step {step} of {run.steps})"
                for run, step in self.unfinished
            ]
            lines += [""] * bool(lines) + [f"Not finished: {', '.join(runs)}."]
        return "\n".join(lines)


def gather(runs: Sequence[Run]) -> Table:
    """The table of all finished runs; differences are from the arm of the first."""
    scores: dict[str, dict[str, dict[int, dict[str, float]]]] = {"last": {}, "best": {}}
    unfinished = []
    for run in runs:
        step = run.step
        if step < run.steps:
            unfinished.append((run, step))
            continue
        for name, values in read_scores(run.workdir).items():
            scores[name].setdefault(run.arm, {})[run.seed] = values
    return Table(compare_arms(scores["last"]), compare_arms(scores["best"]), unfinished)


def _plain(cell: Cell) -> dict[str, Any]:
    difference = cell.difference and cell.difference._asdict()
    return cell.spread._asdict() | {"difference": difference}


def _spread(cell: Cell) -> str:
    mean, sd = cell.spread
    return f"{mean:.4g}" if sd is None else f"{mean:.4g} ± {sd:.2g}"


def _difference(cell: Cell) -> str:
    if cell.difference is None:
        return ""
    mean, low, high = cell.difference
    return f"{mean:+.3g}" if low is None else f"{mean:+.3g} ({low:+.3g} to {high:+.3g})"
