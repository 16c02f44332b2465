"""Trains small models on noisy pairs, with and without curation, and reports what it changes.

    JAX_PLATFORMS=cpu python scripts/evidence_curation.py --data DIR --out OUT

DIR holds `flickr8k_1k`, `caltech101_20` and `coco_mini`. docs/evidence_curation.md has the design,
and `configs/small_curation.py` the runs. The same command goes on where it was stopped, and starts
no run once `--hours` of CPU are spent. At its end, and with `--report` at any time, it writes all
numbers to docs/evidence_curation.json and the tables made of them into the page. `--try` makes
runs of a few steps, and prints the tables.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import siglip2_jax
from siglip2_jax.data.mismatched import FIELD
from siglip2_jax.data.text import read_rows
from siglip2_jax.outputs import write_whole
from siglip2_jax.sweep.statistics import spread

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "small_curation.py"
PAGE = ROOT / "docs" / "evidence_curation.md"
sys.path[:0] = [str(CONFIG.parent), str(ROOT / "scripts")]
from small_curation import ARMS, MODELS, noisy  # noqa: E402
from small_evidence import PATCHES  # noqa: E402
from studies import (  # noqa: E402
    budgeted,
    by_arm,
    differences,
    exit_code,
    gathered,
    kept,
    last_scores,
    make_parser,
    mean_recall,
    means,
    train_arms,
    write_report,
)

SEEDS = 3
STEPS = {"base": 400, "teacher": 600, "informed_teacher": 200}
ARM_STEPS = 400
INTERVAL = 50  # steps of which a share of clean pairs is the mean
CLEAN, TELLS = "clean", "tells"
COLUMNS = {
    CLEAN: "clean among those trained on, %",
    "recall": "mean R@10, %",
    "eval/flickr8k/image_to_text@10": "I→T R@10, %",
    "eval/flickr8k/text_to_image@10": "T→I R@10, %",
    "eval/caltech101/top1": "zero-shot top-1, %",
    TELLS: "clean above noisy, %",
}


def prepare(data: Path, prepared: Path) -> None:
    """Training images of Flickr8k as two halves, the second with notes on who gets noise."""
    source, folder = data / "flickr8k_1k", prepared / "flickr8k"
    rows = [row for _, row in read_rows(source / "captions.jsonl") if row["split"] == "train"]
    is_student = np.zeros(len(rows), bool)
    is_student[np.random.default_rng(0).permutation(len(rows))[len(rows) // 2 :]] = True
    rows = [
        {"file": row["file"], "captions": row["captions"], "part": "student" if x else "teacher"}
        for row, x in zip(rows, is_student, strict=True)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "images").exists():
        (folder / "images").symlink_to((source / "images").absolute())

    def write(rows: Sequence[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_whole(folder / "captions.jsonl", text)

    write(rows)
    opened = noisy(str(prepared)).open()
    examples = [opened[i] for i in range(len(opened))]
    marks = {os.path.basename(example["name"]): example[FIELD] for example in examples}
    write([row | {"exchanged": marks.get(row["file"], False)} for row in rows])


def clean_shares(rows: Sequence[Mapping[str, float]]) -> list[float]:
    """Mean share of clean pairs in each interval of steps, from the lines of a run's metrics."""
    values = [row["sigmoid/clean"] for row in rows if "sigmoid/clean" in row]
    parts = (values[i : i + INTERVAL] for i in range(0, len(values), INTERVAL))
    return [float(np.mean(part)) for part in parts]


def tells_pairs(model: Any, prepared: str) -> float:
    """The probability that a clean pair of the student's has a higher cosine than a noisy one.

    A pair is an image with its captions, whose cosines are averaged.

    Args:
      model: an `Embedder`.
      prepared: what `prepare` has made.
    """
    opened = noisy(prepared).open()
    examples = [opened[i] for i in range(len(opened))]
    images = model.embed_images([x["image"] for x in examples], max_num_patches=PATCHES)
    captions = [model.embed_texts(list(x["captions"])).mean(0) for x in examples]
    marks = np.array([x[FIELD] for x in examples])
    return above((images * np.stack(captions)).sum(-1), marks)


def above(cosines: np.ndarray, marks: np.ndarray) -> float:
    """The share of pairs of a clean and a marked value in which the clean one is higher.

    Args:
      cosines: values [n].
      marks: true where a value is not clean [n].
    """
    gaps = cosines[~marks][:, None] - cosines[marks]
    return float(np.mean(gaps > 0) + np.mean(gaps == 0) / 2)


def collect(runs: Sequence[Any], models: Sequence[Any], prepared: str, out: Path) -> dict[str, Any]:
    """All raw numbers."""
    rows = []
    for run in (run for run in runs if run.is_finished):
        lines = [line for _, line in read_rows(run.workdir / "metrics.jsonl")]
        rows.append(last_scores(run) | {"clean": clean_shares(lines)})

    def measure(workdir: str) -> dict[str, float]:
        return {TELLS: tells_pairs(siglip2_jax.load(workdir), prepared)}

    floors = {}
    for run in (run for run in models if run.is_finished):
        path = out / "floors" / f"{run.arm}.json"
        floors[run.arm] = last_scores(run)["scores"] | kept(
            path, partial(measure, str(run.workdir))
        )
    pool = [row for _, row in read_rows(Path(prepared) / "flickr8k" / "captions.jsonl")]
    pool = [row for row in pool if row["part"] == "student"]
    noise = {"images": len(pool), "noisy": sum(row["exchanged"] for row in pool)}
    command = "JAX_PLATFORMS=cpu python scripts/evidence_curation.py --data DIR --out OUT"
    return gathered(command, out, rows, {"pool": noise, "floors": floors})


def with_recall(scores: Mapping[str, float]) -> dict[str, float]:
    """Scores, and the mean R@10 of both directions."""
    return dict(scores) | {"recall": mean_recall(scores, "flickr8k")}


def tables(results: Mapping[str, Any]) -> Iterator[str]:
    """Lines of the tables: means, differences from the arm uniform, clean pairs against steps."""
    rows = [
        row | {"scores": with_recall(row["scores"]) | {CLEAN: float(np.mean(row["clean"]))}}
        for row in results["runs"]
    ]
    scores = by_arm(rows)
    floors = {name.replace("_", " "): [with_recall(x)] for name, x in results["floors"].items()}
    yield from means(floors | {arm: [*x.values()] for arm, x in scores.items()}, COLUMNS)
    yield ""
    columns = {name: title for name, title in COLUMNS.items() if name != TELLS}
    yield from differences(scores, columns)
    yield ""
    count = max((len(row["clean"]) for row in rows), default=0)
    heads = [f"{i * INTERVAL + 1}–{(i + 1) * INTERVAL}" for i in range(count)]
    yield f"| clean, %, in steps | {' | '.join(heads)} |"
    yield "|---" * (count + 1) + "|"
    for arm in scores:
        shares = [row["clean"] for row in rows if row["arm"] == arm]
        spreads = [spread([100 * x for x in column]) for column in zip(*shares, strict=True)]
        cells = [f"{x.mean:.1f}" + (f" ± {x.sd:.1f}" if x.sd else "") for x in spreads]
        yield f"| {arm} | {' | '.join(cells)} |"


def main() -> int:
    """Runs the script."""
    parser = make_parser(__doc__, hours=0.6)
    parser.add_argument("--try", dest="tiny", action="store_true", help="a few steps, no page")
    args = parser.parse_args()
    data, out = args.data.absolute(), args.out.absolute()
    prepared = str(out / "prepared")
    prepare(data, Path(prepared))
    models, code = [], 0
    settings = [f"data={data}", f"prepared={prepared}", f"runs={out / 'models'}"]
    train = budgeted(out, args.hours, args.report)
    for name in MODELS:
        steps = 3 if args.tiny else STEPS[name]
        length = [*settings, f"steps={steps}"]
        made, code = train_arms(CONFIG, out / "models", (name,), (0,), length, train)
        models += made
        if code:
            return code
    settings += [f"steps={3 if args.tiny else ARM_STEPS}"]
    seeds = range(1 if args.tiny else SEEDS)
    runs, code = train_arms(CONFIG, out / "arms", ARMS, seeds, settings, train)
    results = collect(runs, models, prepared, out)
    if args.tiny:
        print("\n".join(tables(results)))
    elif results["runs"]:
        write_report(PAGE, results, tables(results))
    return code


if __name__ == "__main__":
    sys.exit(exit_code(main))
