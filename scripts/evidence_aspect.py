"""Trains small models on strips of photos, squashed and in their shape, and compares them.

    JAX_PLATFORMS=cpu python scripts/evidence_aspect.py --data DIR --out OUT

DIR holds `flickr8k_1k` and `caltech101_20`. docs/evidence_aspect.md has the design, and
`configs/small_aspect.py` the runs. The same command goes on where it was stopped, and starts no run
once `--hours` of CPU are spent. At its end, and with `--report` at any time, it writes all numbers
to docs/evidence_aspect.json and the tables made of them into the page. `--try` makes runs of a few
steps, and prints the tables.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from siglip2_jax.config import TrainConfig, load_config
from siglip2_jax.train.inputs import image_preprocessor

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "small_aspect.py"
PAGE = ROOT / "docs" / "evidence_aspect.md"
sys.path[:0] = [str(CONFIG.parent), str(ROOT / "scripts")]
from small_aspect import ARMS, BINS  # noqa: E402
from small_evidence import PATCHES  # noqa: E402
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
    mean_recall,
    means,
    scores_of,
    train_arms,
    write_report,
)

SEEDS = 3
STEPS = 800
TITLES = {"whole": "whole", "1to1": "1:1", "2to1": "2:1", "4to1": "4:1"}
RECALL = {f"recall/{name}": f"R@10 {title}, %" for name, title in TITLES.items()}
GROWTH = {"recall/4to1-1to1": "R@10, 4:1 less 1:1"}
TOP1 = {f"eval/caltech101_{name}/top1": f"top-1 {title}, %" for name, title in TITLES.items()}


def with_recall(scores: Mapping[str, float]) -> dict[str, float]:
    """Scores, with the mean R@10 of both directions in every bin and how it grows."""
    more = {f"recall/{name}": mean_recall(scores, f"flickr8k_{name}") for name in BINS}
    return dict(scores) | more | {"recall/4to1-1to1": more["recall/4to1"] - more["recall/1to1"]}


def patches_used(evaluators: Sequence[Any], preprocess: Any) -> dict[str, float]:
    """Mean number of patches of the images of each evaluator, by its name."""
    used = {}
    for evaluator in evaluators:
        examples = evaluator.source.open()
        sizes = [examples[i]["image"].size for i in range(len(examples))]
        grids = [preprocess.grid((height, width), PATCHES) for width, height in sizes]
        used[evaluator.name] = float(np.mean([rows * columns for rows, columns in grids]))
    return used


def untrained(config: TrainConfig, seed: int) -> dict[str, float]:
    """Scores of a model before any training, which tell nothing but the place of chance."""
    return scores_of(fresh_model(config, seed), config.stages[0].evals)


def collect(runs: Sequence[Any], settings: Sequence[str], out: Path) -> dict[str, Any]:
    """All raw numbers."""
    floors, used = {}, {}
    for arm in ARMS:
        config = load_config(CONFIG, [*settings, f"arm={arm}"])
        (stage,) = config.resolved
        measure = partial(patches_used, stage.evals, image_preprocessor(stage))
        used[arm] = kept(out / "floors" / f"patches {arm}.json", measure)
        for seed in sorted({run.seed for run in runs}):
            name = f"untrained {arm}, seed {seed}"
            floors[name] = kept(out / "floors" / f"{name}.json", partial(untrained, config, seed))
    rows = [last_scores(run) for run in runs if run.is_finished]
    command = "JAX_PLATFORMS=cpu python scripts/evidence_aspect.py --data DIR --out OUT"
    return gathered(command, out, rows, {"patches": used, "floors": floors})


def tables(results: Mapping[str, Any]) -> Iterator[str]:
    """Lines of the tables: means by bin, differences from the arm square, patches by bin."""
    rows = [row | {"scores": with_recall(row["scores"])} for row in results["runs"]]
    scores = by_arm(rows)
    groups: dict[str, list[Mapping[str, float]]] = {}
    for name, row in results["floors"].items():
        groups.setdefault(name.partition(", seed")[0], []).append(with_recall(row))
    yield from means(groups | {arm: [*x.values()] for arm, x in scores.items()}, RECALL | TOP1)
    yield ""
    yield from differences(scores, RECALL | GROWTH | TOP1)
    yield ""
    yield f"| patches an image has, mean | {' | '.join(TITLES.values())} |"
    yield "|---" * (len(TITLES) + 1) + "|"
    for arm, used in results["patches"].items():
        for name in ("flickr8k", "caltech101"):
            cells = [f"{used[f'{name}_{cut}']:.1f}" for cut in TITLES]
            yield f"| {arm}, {name} | {' | '.join(cells)} |"


def main() -> int:
    """Runs the script."""
    parser = make_parser(__doc__, hours=0.6)
    parser.add_argument("--try", dest="tiny", action="store_true", help="a few steps, no page")
    args = parser.parse_args()
    data, out = args.data.absolute(), args.out.absolute()
    settings = [f"data={data}", f"steps={3 if args.tiny else STEPS}"]
    train = budgeted(out, args.hours, args.report)
    seeds = range(1 if args.tiny else SEEDS)
    runs, code = train_arms(CONFIG, out / "arms", ARMS, seeds, settings, train)
    if not any(run.is_finished for run in runs):
        return code
    results = collect(runs, settings, out)
    if args.tiny:
        print("\n".join(tables(results)))
    else:
        write_report(PAGE, results, tables(results))
    return code


if __name__ == "__main__":
    sys.exit(exit_code(main))
