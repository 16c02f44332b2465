"""Parts of the studies in docs/evidence*.md: budget, measurements kept, tables, the page.

`evidence.py`, `evidence_curation.py` and `evidence_aspect.py` use it; it is not run by itself.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from etils import epath

from siglip2_jax.config import TrainConfig
from siglip2_jax.data.text import read_json, read_rows
from siglip2_jax.inference.embedder import Embedder
from siglip2_jax.outputs import write_whole
from siglip2_jax.sweep.arms import Arm
from siglip2_jax.sweep.runs import Run, plan_runs, train_all, train_here
from siglip2_jax.sweep.statistics import spread
from siglip2_jax.sweep.table import Scores, compare_arms, read_scores
from siglip2_jax.train.inputs import image_preprocessor, open_tokenizer
from siglip2_jax.train.step import Program
from siglip2_jax.train.versions import installed_versions

ROOT = Path(__file__).parents[1]
START, END = "<!-- tables -->\n", "<!-- end of tables -->"
Trainer = Callable[[Run], int]


def make_parser(doc: str | None, hours: float) -> argparse.ArgumentParser:
    """Options that all studies have.

    Args:
      doc: docstring of the script, whose first line says what it does.
      hours: CPU hours that training may take.
    """
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--data", required=True, type=Path, help="directory with the data sets")
    parser.add_argument("--out", required=True, type=Path, help="workdirs and measurements")
    parser.add_argument("--hours", type=float, default=hours, help="CPU hours training may take")
    parser.add_argument("--report", action="store_true", help="train nothing; report what there is")
    return parser


def timed(train: Trainer, out: Path, hours: float) -> Trainer:
    """The same, with the CPU time of each process noted; does not begin beyond the budget."""

    def run(planned: Run) -> int:
        if spent(out) > hours:
            print(f"the budget of {hours} CPU hours is spent", file=sys.stderr)
            return 143
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        code = train(planned)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        with (out / "cpu.jsonl").open("a") as file:
            row = {"arm": planned.arm, "seed": planned.seed, "step": planned.step}
            file.write(json.dumps(row | {"cpu_s": round(seconds)}) + "\n")
        return code

    return run


def spent(out: Path) -> float:
    """CPU hours of all training so far."""
    path = out / "cpu.jsonl"
    rows = [row for _, row in read_rows(path)] if path.exists() else []
    return sum(row["cpu_s"] for row in rows) / 3600


def show(text: str) -> None:
    """Prints a sentence on a run."""
    print(text, file=sys.stderr)


def train_arms(
    config: Path,
    workdir: Path,
    names: Sequence[str],
    seeds: Iterable[int],
    settings: Sequence[str],
    train: Trainer | None,
) -> tuple[list[Run], int]:
    """Trains arms that a config knows by its argument `arm`.

    Args:
      config: its file.
      workdir: of the runs.
      names: of the arms.
      seeds: of every arm.
      settings: of all arms.
      train: trains one run; None trains none.

    Returns:
      All runs, and the exit code.
    """
    arms = [Arm(name, (f"arm={name}",)) for name in names]
    runs = plan_runs(str(config), workdir, arms, tuple(seeds), settings)
    return runs, train_all(runs, show, train) if train else 0


def budgeted(out: Path, hours: float, report: bool) -> Trainer | None:
    """The trainer within the budget; None for a report of what there is."""
    out.mkdir(parents=True, exist_ok=True)
    return None if report else timed(train_here, out, hours)


def fresh_model(config: TrainConfig, seed: int) -> Embedder:
    """The model before any training."""
    (stage,) = config.resolved
    params = jax.jit(Program(stage).init_params)(jax.random.key(seed))
    params = {name: x for name, x in params.items() if name != "heads"}
    return Embedder(stage.model, params, image_preprocessor(stage), open_tokenizer(config))


def scores_of(model: Any, evaluators: Any) -> dict[str, float]:
    """Numbers under the names that training gives them."""
    return {f"eval/{x.name}/{k}": float(v) for x in evaluators for k, v in x(model).items()}


def kept(path: Path, job: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Result of a job, from its file if it was done before."""
    if not path.exists():
        write_whole(path, json.dumps(job()))
    return read_json(path)


def last_scores(run: Run) -> dict[str, Any]:
    """A finished run's arm, seed and steps, and the last value of each of its scores."""
    scores = read_scores(epath.Path(run.workdir))["last"]
    return {"arm": run.arm, "seed": run.seed, "steps": run.steps, "scores": scores}


def gathered(
    command: str, out: Path, rows: Sequence[Mapping[str, Any]], more: Mapping[str, Any]
) -> dict[str, Any]:
    """All raw numbers of a study, for its file of JSON.

    Args:
      command: that measures them again.
      out: directory of the study.
      rows: one a finished run, as of `last_scores`.
      more: further numbers by their names.
    """
    versions, hours = installed_versions(), round(spent(out), 2)
    first = {"command": command, "versions": versions, "cpu_hours": hours}
    return first | dict(more) | {"runs": list(rows)}


def exit_code(main: Callable[[], int]) -> int:
    """The exit code of a script; mistakes in its arguments or data are one sentence and code 2."""
    try:
        return main()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def mean_recall(scores: Mapping[str, float], name: str) -> float:
    """Mean R@10 of both directions.

    Args:
      scores: numbers under the names that training gives them.
      name: of the evaluator.
    """
    ways = ("image_to_text", "text_to_image")
    return sum(scores[f"eval/{name}/{way}@10"] for way in ways) / len(ways)


def by_arm(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, dict[str, float]]]:
    """Scores by arm and seed."""
    scores: dict[str, dict[int, dict[str, float]]] = {}
    for row in rows:
        scores.setdefault(row["arm"], {})[row["seed"]] = row["scores"]
    return scores


def means(
    groups: Mapping[str, Sequence[Mapping[str, float]]], columns: Mapping[str, str]
) -> Iterator[str]:
    """Lines of a table with the mean and standard deviation of each group, times 100.

    Args:
      groups: scores by metric of each member, by the name of the group.
      columns: headings by metric.
    """
    yield f"| | {' | '.join(columns.values())} |"
    yield "|---" * (len(columns) + 1) + "|"
    for name, rows in groups.items():
        cells = []
        for metric in columns:
            values = [100 * row[metric] for row in rows if metric in row]
            mean, sd = spread(values) if values else (None, None)
            cells.append("" if mean is None else f"{mean:.1f}" + (f" ± {sd:.1f}" if sd else ""))
        yield f"| {name} | {' | '.join(cells)} |"


def differences(scores: Scores, columns: Mapping[str, str]) -> Iterator[str]:
    """Lines of a table with the paired differences of all arms from the first, times 100.

    Args:
      scores: numbers by arm, seed and metric.
      columns: headings by metric.
    """
    cells = {(cell.metric, cell.arm): cell for cell in compare_arms(scores)}
    yield f"| minus {next(iter(scores), '')} | {' | '.join(columns.values())} |"
    yield "|---" * (len(columns) + 1) + "|"
    for arm in [*scores][1:]:
        line = []
        for metric in columns:
            cell = cells.get((metric, arm))
            difference = cell.difference if cell else None
            if difference is None:
                line.append("")
                continue
            mean, low, high = (None if x is None else 100 * x for x in difference)
            line.append(f"{mean:+.1f}" + ("" if low is None else f" ({low:+.1f} to {high:+.1f})"))
        yield f"| {arm} | {' | '.join(line)} |"


def write_report(page: Path, results: Mapping[str, Any], lines: Iterable[str]) -> None:
    """Writes the numbers beside a page, and the tables between their marks in it.

    Args:
      page: a file of Markdown with the marks `START` and `END`; the numbers' ends in .json.
      results: all numbers, as of `gathered`.
      lines: of the tables.
    """
    write_whole(page.with_suffix(".json"), json.dumps(results, indent=1) + "\n")
    head, _, rest = page.read_text().partition(START)
    text = "\n".join(lines)
    done = f"{len(results['runs'])} runs, {results['cpu_hours']} CPU hours of training."
    write_whole(page, f"{head}{START}\n{done}\n\n{text}\n\n{END}{rest.partition(END)[2]}")
