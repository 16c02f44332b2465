"""Trains a small model on real images, adds parts of the recipe, and reports what they change.

    JAX_PLATFORMS=cpu python scripts/evidence.py --data DIR --out OUT

DIR holds `flickr8k_1k`, `caltech101_20`, `coco_mini`, `camvid_60` and `depth_7scenes_32`.
docs/evidence.md has the design, and `configs/small_evidence.py` the runs. The same command goes on
where it was stopped, and starts no run once `--hours` of CPU are spent. At its end, and with
`--report` at any time, it writes all numbers to docs/evidence.json and the tables made of them into
docs/evidence.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

import siglip2_jax
from siglip2_jax.benchmarks.decoder.expressions import ExpressionFile
from siglip2_jax.benchmarks.decoder.referring import Referring
from siglip2_jax.config import TrainConfig, load_config
from siglip2_jax.data.regions import from_coco
from siglip2_jax.data.text import read_rows
from siglip2_jax.inference import load_captioner
from siglip2_jax.outputs import write_whole
from siglip2_jax.sweep.runs import Run
from siglip2_jax.train.inputs import image_preprocessor

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "small_evidence.py"
PAGE = ROOT / "docs" / "evidence.md"
sys.path[:0] = [str(CONFIG.parent), str(ROOT / "scripts")]
import evidence_patches as patches  # noqa: E402
from evidence_probes import Colours, FrozenProbes  # noqa: E402
from studies import (  # noqa: E402
    budgeted,
    by_arm,
    differences,
    exit_code,
    fresh_model,
    gathered,
    kept,
    last_scores,
    make_parser,
    means,
    scores_of,
    train_arms,
    write_report,
)

ARMS = ("as_is", "ssl", "self_distill", "masked", "ibot", "boxes")
SEEDS = 3
BASE_STEPS, MOST_STEPS, PATIENCE = 500, 4000, 2
ARM_STEPS = 500
CLASSES = 16
COLUMNS = {
    "eval/probe/camvid_miou": "camvid_60 mIoU, %",
    "eval/probe/depth_rmse": "depth RMSE, cm (less is better)",
    "eval/patches/retrieval_ap": "patch retrieval AP, %",
    "eval/coco/miou": "open-vocabulary mIoU, %",
    "eval/patches/pointing": "pointing, %",
    "eval/flickr8k/image_to_text@10": "I→T R@10, %",
    "eval/flickr8k/text_to_image@10": "T→I R@10, %",
    "eval/caltech101/top1": "zero-shot top-1, %",
    "eval/refer/acc@0.5": "boxes found, %",
}
STOP = [name for name in COLUMNS if "flickr8k" in name or "caltech101" in name]
"""Scores whose mean decides when the base model stops."""


def prepare(data: Path, out: Path) -> None:
    """Training rows of coco_mini with regions, class maps and referring expressions."""
    coco = data / "coco_mini"
    rows = [row for _, row in read_rows(coco / "annotations.jsonl")]
    kept = [
        {"file": row["file"], "captions": row["captions"]}
        | {"regions": [region.as_dict() for region in from_coco(row)]}
        for row in rows
        if row["split"] == "train"
    ]
    (out / "coco").mkdir(parents=True, exist_ok=True)
    if not (out / "coco" / "images").exists():
        (out / "coco" / "images").symlink_to((coco / "images").absolute())
    write_whole(out / "coco" / "captions.jsonl", "".join(json.dumps(row) + "\n" for row in kept))
    patches.write_maps(str(coco), str(out / "maps"), CLASSES)
    expressions = [
        {"file": row["file"], "expression": query.category, "split": "val"}
        | {"box": [query.box[i] for i in (1, 0, 3, 2)]}
        for row in patches.CocoPatches(folder=str(coco)).rows()
        for query in patches.queries(row, (8, 8))
        if query.box is not None
    ]
    text = "".join(json.dumps(row) + "\n" for row in expressions)
    write_whole(out / "expressions.jsonl", text)


def curve(workdir: Path) -> list[dict[str, float]]:
    """Steps of a run whose scores were measured."""
    path = workdir / "metrics.jsonl"
    rows = [row for _, row in read_rows(path)] if path.exists() else []
    return [{k: row[k] for k in ("step", *STOP)} for row in rows if STOP[0] in row]


def train_base(settings: list[str], out: Path, train: Callable[[Run], int]) -> bool:
    """Trains the base model until its scores stop improving; False if it was stopped."""
    arguments = ["train", str(CONFIG), "--workdir", str(out / "base")]
    arguments += [x for setting in settings for x in ("--set", setting)]
    planned = Run("base", 0, epath.Path(out / "base"), (), 0)
    while True:
        means = [np.mean([row[name] for name in STOP]) for row in curve(out / "base")]
        since = len(means) - 1 - int(np.argmax(means)) if means else 0
        if since >= PATIENCE or planned.step >= MOST_STEPS:
            return True
        steps = planned.step // BASE_STEPS * BASE_STEPS + BASE_STEPS
        longer = (*arguments, "--set", f"steps={steps}")
        if code := train(planned._replace(arguments=longer, steps=steps)):
            print(f"the base model stopped with exit code {code}", file=sys.stderr)
            return False


def measure_floors(config: TrainConfig, data: Path, out: Path) -> dict[str, dict[str, Any]]:
    """Scores of the base model, of untrained ones, of colours and of the centre; kept in OUT."""
    evaluators = config.stages[0].evals
    probes = [x for x in evaluators if isinstance(x, FrozenProbes)]
    coco: Any = next(x for x in evaluators if isinstance(x, patches.CocoPatches))

    def centre() -> dict[str, float]:
        rows = coco.rows()
        images = [str(data / "coco_mini" / "images" / row["file"]) for row in rows]
        features = colours().image_features(images, coco.max_num_patches)
        found = patches.measure(rows, features.grid.tolist(), patches.towards_the_centre)
        return {f"eval/{coco.name}/{name}": value for name, value in found.items()}

    def colours() -> Colours:
        return Colours(image_preprocessor(config.resolved[0]))

    def base() -> dict[str, float]:
        return scores_of(siglip2_jax.load(str(out / "base")), evaluators)

    jobs: dict[str, Callable[[], dict[str, float]]] = {
        "colours, edges and place": lambda: scores_of(colours(), probes),
        "nearest to the centre": centre,
    }
    for seed in range(SEEDS):
        jobs[f"untrained model, seed {seed}"] = partial(
            lambda seed: scores_of(fresh_model(config, seed), evaluators), seed
        )
    jobs["base model"] = base
    return {name: kept(out / "floors" / f"{name}.json", job) for name, job in jobs.items()}


def measure_boxes(run: Run, data: Path, prepared: Path) -> dict[str, float]:
    """Boxes that the decoder of a run finds for the names of things."""
    source = ExpressionFile(str(prepared / "expressions.jsonl"), str(data / "coco_mini" / "images"))
    referring = Referring(source=source, name="refer", max_num_patches=64)
    return scores_of(load_captioner(str(run.workdir)), [referring])


def collect(
    runs: list[Run], floors: Mapping[str, Any], data: Path, out: Path, command: str
) -> dict[str, Any]:
    """All raw numbers."""
    rows = []
    for run in (run for run in runs if run.is_finished):
        row = last_scores(run)
        if run.arm == "boxes":
            path = out / "floors" / f"boxes {run.seed}.json"
            row["scores"] |= kept(path, partial(measure_boxes, run, data, out / "prepared"))
        rows.append(row)
    return gathered(command, out, rows, {"base": curve(out / "base"), "floors": dict(floors)})


def tables(results: Mapping[str, Any]) -> Iterator[str]:
    """Lines of the tables: means of all, then differences from the arm as_is."""
    scores = by_arm(results["runs"])
    groups: dict[str, list[Mapping[str, float]]] = {}
    for name, row in results["floors"].items():
        groups.setdefault(name.partition(", seed")[0], []).append(row)
    groups |= {arm: [*seeds.values()] for arm, seeds in scores.items()}
    yield from means(groups, COLUMNS)
    yield ""
    yield from differences(scores, COLUMNS)


def main() -> int:
    """Runs the script."""
    args = make_parser(__doc__, hours=4).parse_args()
    data, out = args.data.absolute(), args.out.absolute()
    prepared = out / "prepared"
    prepare(data, prepared)
    settings = [f"data={data}", f"prepared={prepared}"]
    train = budgeted(out, args.hours, args.report)
    if train and not train_base(settings, out, train):
        return 1
    settings += [f"base={out / 'base'}", f"steps={ARM_STEPS}"]
    runs, code = train_arms(CONFIG, out / "arms", ARMS, range(SEEDS), settings, train)
    if all(run.step == 0 for run in runs):
        return code
    floors = measure_floors(load_config(CONFIG, [*settings, "arm=as_is"]), data, out)
    command = "JAX_PLATFORMS=cpu python scripts/evidence.py --data DIR --out OUT"
    results = collect(runs, floors, data, out, command)
    write_report(PAGE, results, tables(results))
    return code


if __name__ == "__main__":
    sys.exit(exit_code(main))
