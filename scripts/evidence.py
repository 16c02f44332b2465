"""Trains every arm of `configs/small_evidence.py` and measures what its vision tower has learned.

    python scripts/evidence.py --data DIR --out /tmp/evidence --steps 1000

DIR holds `flickr8k_1k`, `caltech101_20` and `camvid_60`. Runs that have a result in
OUT/results.jsonl are passed over, so that the script may be stopped and started again, or run once
for each of `--datasets` side by side. Measured are, on validation images: recall at 10 from image
to text (flickr8k_1k), zero-shot top-1 (caltech101_20); and for both the mean IoU of a linear probe
on the patch tokens of camvid_60. Prints a table of means and ranges over the seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CONFIG = Path(__file__).parents[1] / "configs" / "small_evidence.py"
ARMS = ("sigmoid", "caption", "distill", "curate")
DATASETS = ("caltech101_20", "flickr8k_1k")
PATCHES = 49
PROBE_PATCHES = 300  # 15 x 20: the street scenes are 4 : 3
RIDGE = 1e-2


def train(data: str, out: Path, dataset: str, arm: str, seed: int, steps: int) -> float:
    """Runs one arm; minutes of wall time."""
    workdir = out / f"{dataset}-{arm}-{seed}"
    shutil.rmtree(workdir, ignore_errors=True)
    given = {"data": data, "dataset": dataset, "arm": arm, "seed": seed, "steps": steps}
    if arm == "curate":
        given["teacher"] = str(out / f"{dataset}-sigmoid-{seed}")
    command = ["train", str(CONFIG), "--workdir", str(workdir), "--no-distributed"]
    for name, value in given.items():
        command += ["--set", f"{name}={value}"]
    entry = "import sys; from siglip2_jax.cli import main; sys.exit(main())"
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", entry, *command], check=True)
    return (time.perf_counter() - start) / 60


def measure(data: str, workdir: Path, dataset: str) -> dict[str, float]:
    """What the run's model can do on images that it has not seen."""
    import siglip2_jax
    from siglip2_jax.data.sources import Folder
    from siglip2_jax.evals.retrieval import Retrieval
    from siglip2_jax.evals.zero_shot import ZeroShot

    model = siglip2_jax.load(str(workdir))
    held_out = (("split", "val"),)
    if dataset == "caltech101_20":
        path = os.path.join(data, dataset)
        source = Folder(path, captions="labels.jsonl", where=held_out, template="{name}")
        numbers = ZeroShot(source=source, max_num_patches=PATCHES)(model)
        found = {"task": numbers["top1"]}
    else:
        source = Folder(os.path.join(data, dataset), where=held_out)
        numbers = Retrieval(source=source, max_num_patches=PATCHES)(model)
        found = {"task": numbers["image_to_text@10"]}
    return found | {"camvid_miou": probe(model, Path(data) / "camvid_60")}


def probe(model: Any, folder: Path) -> float:
    """Mean IoU of ridge regression from patch tokens to the share of each class in the patch.

    Scores are made as large as the label map by bilinear interpolation; void pixels do not count.
    """
    from siglip2_jax.data.text import read_rows

    names = json.loads((folder / "classes.json").read_text())
    rows = [row for _, row in read_rows(folder / "index.jsonl")]
    count = names["void"]
    tokens, labels, grids = {}, {}, {}
    for split in ("train", "test"):
        chosen = [row for row in rows if row["split"] == split]
        features = model.image_features(
            [str(folder / row["image"]) for row in chosen], max_num_patches=PROBE_PATCHES
        )
        valid = np.asarray(features.valid)
        tokens[split] = [x[v] for x, v in zip(np.asarray(features.tokens), valid, strict=True)]
        grids[split] = np.asarray(features.grid)
        labels[split] = [np.asarray(Image.open(folder / row["label"])) for row in chosen]
    shares = [
        _shares(x, grid, count) for x, grid in zip(labels["train"], grids["train"], strict=True)
    ]
    inputs, wanted = np.concatenate(tokens["train"]), np.concatenate(shares)
    mean, scale = inputs.mean(0), inputs.std(0) + 1e-6
    inputs = np.column_stack([(inputs - mean) / scale, np.ones(len(inputs))]).astype(np.float64)
    penalty = RIDGE * len(inputs) * np.eye(inputs.shape[1])
    weights = np.linalg.solve(inputs.T @ inputs + penalty, inputs.T @ wanted)
    confusion = np.zeros((count, count))
    for x, label, (height, width) in zip(
        tokens["test"], labels["test"], grids["test"], strict=True
    ):
        scores = np.column_stack([(x - mean) / scale, np.ones(len(x))]) @ weights
        guess = _enlarge(scores.reshape(height, width, count), label.shape).argmax(-1)
        known = label < count
        np.add.at(confusion, (label[known], guess[known]), 1)
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    return float((confusion.diagonal() / union)[confusion.sum(1) > 0].mean())


def _shares(label: np.ndarray, grid: np.ndarray, count: int) -> np.ndarray:
    """Of each class in each patch [rows * columns, classes]."""
    onehot = (label[..., None] == np.arange(count)).astype(np.float32)
    rows, columns = grid
    planes = [
        np.asarray(Image.fromarray(onehot[..., i]).resize((columns, rows), Image.Resampling.BOX))
        for i in range(count)
    ]
    return np.stack(planes, axis=-1).reshape(-1, count)


def _enlarge(scores: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    height, width = shape
    planes = [
        Image.fromarray(scores[..., i].astype(np.float32)).resize(
            (width, height), Image.Resampling.BILINEAR
        )
        for i in range(scores.shape[-1])
    ]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


def table(rows: list[dict[str, Any]]) -> str:
    """Means and ranges over the seeds, one line an arm."""
    lines = ["| data | arm | seeds | task | camvid_60 mIoU |", "|---|---|---|---|---|"]
    for dataset in DATASETS:
        for arm in ARMS:
            found = [r for r in rows if (r["dataset"], r["arm"]) == (dataset, arm)]
            if not found:
                continue
            cells = []
            for name in ("task", "camvid_miou"):
                values = 100 * np.array([row[name] for row in found])
                cells.append(f"{values.mean():.1f} ({values.min():.1f} to {values.max():.1f})")
            lines.append(f"| {dataset} | {arm} | {len(found)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="directory with the data sets")
    parser.add_argument("--out", required=True, type=Path, help="workdirs and results")
    parser.add_argument("--steps", type=int, default=1000, help="of the arm sigmoid")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=DATASETS)
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    from siglip2_jax.data.text import read_rows

    args.out.mkdir(parents=True, exist_ok=True)
    results = args.out / "results.jsonl"
    rows = [row for _, row in read_rows(results)] if results.exists() else []
    for seed in range(args.seeds):
        for dataset in args.datasets:
            for arm in ARMS:
                key = {"dataset": dataset, "arm": arm, "seed": seed, "steps": args.steps}
                if any(key.items() <= row.items() for row in rows):
                    continue
                minutes = train(args.data, args.out, dataset, arm, seed, args.steps)
                found = measure(args.data, args.out / f"{dataset}-{arm}-{seed}", dataset)
                rows.append(key | {"minutes": minutes} | found)
                with results.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
                print(json.dumps(rows[-1]), flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
