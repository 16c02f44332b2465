"""Held-out check of calibrations: what a wanted precision or recall becomes on unseen images.

    python scripts/calibration_evidence.py MODEL DATA --precision 0.3 --recall 0.8 [--json FILE]

DATA is `caltech101_20` (each image with every label) or `coco_mini` (each image with the first two
captions of every image). Of the validation images a random half is calibrated on, as `siglip2
calibrate` does, and the threshold is tried on the other half; so for each split. Prints a table:
what the unseen halves got, in how many splits that lies in the interval that the calibration gave,
and what the model's own probabilities get there from 0.5 on.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

import siglip2_jax
from siglip2_jax.data.text import read_rows
from siglip2_jax.evals.calibrate import Pairs, fit, measure
from siglip2_jax.evals.calibration_examples import Judged, score
from siglip2_jax.inference.calibration import Metric

CAPTIONS = 2  # of each image


def read_pairs(data: Path) -> Judged:
    """Validation images of a data set with its texts, and which belong together."""
    labels = data / "labels.jsonl"
    table = labels if labels.exists() else data / "annotations.jsonl"
    rows = [row for _, row in read_rows(table) if row["split"] == "val"]
    if labels.exists():
        texts = sorted({row["name"] for row in rows})
        belong = [{row["name"]} for row in rows]
    else:
        belong = [set(row["captions"][:CAPTIONS]) for row in rows]
        texts = sorted(set().union(*belong))
    verdicts = {(i, j): text in x for i, x in enumerate(belong) for j, text in enumerate(texts)}
    images = [str(data / "images" / row["file"]) for row in rows]
    return Judged(images, texts, verdicts, labels.exists())


def halves(pairs: Pairs, seed: int) -> tuple[Pairs, Pairs]:
    """The pairs of a random half of the images, and those of the others."""
    images = int(pairs.image.max()) + 1
    chosen = np.random.default_rng(seed).permutation(images) < images // 2
    parts = []
    for mask in (chosen[pairs.image], ~chosen[pairs.image]):
        numbers = np.unique(pairs.image[mask], return_inverse=True)[1]
        parts.append(Pairs(pairs.cosines[mask], pairs.matches[mask], numbers))
    return parts[0], parts[1]


def try_goal(
    pairs: Pairs, metric: Metric, wanted: float, model: tuple[float, float], splits: int
) -> dict[str, Any]:
    """Calibrates on each half and tries the threshold on the other.

    Args:
      pairs: all scored pairs.
      metric, wanted: the goal.
      model: the model's own temperature and bias.
      splits: how many halves.
    """
    unseen, inside, lows, highs, claimed, accepted = [], 0, [], [], 0, []
    own_cosine = -model[1] / model[0]  # where its probability is 0.5
    own = []
    for seed in range(splits):
        some, others = halves(pairs, seed)
        once = np.ones((1, int(others.image.max()) + 1), np.int64)
        own += measure(others, metric, own_cosine, once).tolist()
        accepted.append(int((others.cosines >= own_cosine).sum()))
        result = fit(some, (metric, wanted), seed)
        goal = result.goal
        claimed += not result.warnings
        if goal is None or goal.threshold is None:
            continue
        probabilities = expit(result.temperature * others.cosines + result.bias)
        hits = (probabilities >= goal.threshold) & others.matches
        among = others.matches if metric == "recall" else probabilities >= goal.threshold
        value = float(hits.sum() / among.sum()) if among.any() else np.nan
        low, high = goal.interval
        inside += low <= value <= high
        unseen.append(value)
        lows.append(low)
        highs.append(high)
    return {
        "metric": metric,
        "wanted": wanted,
        "splits": splits,
        "with_threshold": len(unseen),
        "without_warning": claimed,
        "unseen_mean": float(np.nanmean(unseen)) if unseen else None,
        "unseen_range": [float(np.nanmin(unseen)), float(np.nanmax(unseen))] if unseen else None,
        "interval_mean": [float(np.mean(lows)), float(np.mean(highs))] if unseen else None,
        "inside": inside,
        "own_accepts_mean": float(np.mean(accepted)),
        "own_mean": float(np.mean(own)) if np.isfinite(own).all() else None,
    }


def table(results: list[dict[str, Any]]) -> str:
    """The results in Markdown."""
    lines = [
        "| wanted | on unseen images: mean (range) | mean interval | splits inside it | "
        "no warning | model's own, from 0.5 on |",
        "|---|---|---|---|---|---|",
    ]
    for x in results:
        cells = ["none reached", "", "", ""]
        if x["unseen_mean"] is not None:
            (least, most), (low, high) = x["unseen_range"], x["interval_mean"]
            cells = [
                f"{x['unseen_mean']:.3f} ({least:.2f} to {most:.2f})",
                f"{low:.2f} to {high:.2f}",
                f"{x['inside']} of {x['with_threshold']}",
                f"{x['without_warning']} of {x['splits']}",
            ]
        goal = f"{x['metric']} {x['wanted']:g}"
        own = "" if x["own_mean"] is None else f"{x['metric']} {x['own_mean']:.3f}, "
        own += f"accepts {x['own_accepts_mean']:.0f} pairs"
        lines.append(f"| {' | '.join([goal, *cells, own])} |")
    return "\n".join(lines)


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", help="a checkpoint or the directory of a run")
    parser.add_argument("data", type=Path)
    parser.add_argument("--precision", type=float, nargs="+", default=[])
    parser.add_argument("--recall", type=float, nargs="+", default=[])
    parser.add_argument("--templates", nargs="+", default=["a photo of a {}"], help="of labels")
    parser.add_argument("--max-num-patches", type=int, default=256)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the results there")
    args = parser.parse_args()
    model = siglip2_jax.load(args.model)
    judged = read_pairs(args.data)
    pairs, _ = score(model, judged, args.templates, max_num_patches=args.max_num_patches)
    print(f"{pairs.matches.sum()} matches among {len(pairs.matches)} pairs", file=sys.stderr)
    goals: list[tuple[Metric, float]] = [
        *(("precision", x) for x in args.precision),
        *(("recall", x) for x in args.recall),
    ]
    own = (model.temperature, model.bias)
    results = [try_goal(pairs, *goal, own, args.splits) for goal in goals]
    print(table(results))
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
