"""Fine-tunes a small model on 300 pairs in several ways, and writes the tables of the tutorial.

    python scripts/own_pairs_table.py --data DIR --out /tmp/own_pairs

DIR holds `flickr8k_1k`, `caltech101_20` and `coco_mini`. The base model is trained first
(`configs/own_pairs_base.py`), then the recipe `own_pairs` with each row's settings on 300 images of
Flickr8k's training split, measured on its 100 validation images. A seed chooses the 300 images and
the order. Rows that OUT/results.jsonl has are not made again, so that the script may be stopped and
started, or run once for each of `--only` side by side, once the base model is there. It ends with
writing all rows to `docs/own_pairs.json` and the tables into `docs/fine_tuning.md`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "own_pairs.json"
PAGE = ROOT / "docs" / "fine_tuning.md"
PAIRS, STEPS, PATCHES = 300, 100, 36
SEEDS, CHANGES = (0, 1, 2), "changes"
PARTS = (*map(str, SEEDS), CHANGES)
USUAL = {"lr": "3e-4", "batch": "64", "base_batch": "64", "patches": str(PATCHES)}
USUAL_ARM = "all parameters"
ARMS = {
    USUAL_ARM: {},
    "adapters (LoRA, rank 16)": {"learn": "adapters"},
    "text tower, image tower frozen": {"learn": "text"},
    "image tower, text tower frozen": {"learn": "image"},
}
FACTORS = {
    "batch of 16": {"batch": "16"},
    "learning rate x 0.3": {"lr": "9e-5"},
    "learning rate x 3": {"lr": "9e-4"},
    "no crops and mirroring": {"augment": "False"},
    "`b` of a batch of 32,768, shifted": {"start": "low", "base_batch": "32768"},
    "`b` of a batch of 32,768, not shifted": {"start": "low"},
}
METRICS = {
    f"eval/held_out/{way}@{k}": f"{name} R@{k}"
    for way, name in (("image_to_text", "I→T"), ("text_to_image", "T→I"))
    for k in (1, 10)
} | {"eval/train/image_to_text@10": "trained on: I→T R@10"}


def write_pairs(data: Path, folder: Path, seed: int) -> None:
    """A folder of 300 images to train on and the 100 to measure on, with a column `split`."""
    from siglip2_jax.data.text import read_rows
    from siglip2_jax.outputs import write_once

    source = data / "flickr8k_1k"
    rows = [row for _, row in read_rows(source / "captions.jsonl")]
    train = [row for row in rows if row["split"] == "train"]
    chosen = np.random.default_rng(seed).permutation(len(train))[:PAIRS]
    kept = [train[i] for i in sorted(chosen)] + [row for row in rows if row["split"] == "val"]
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "images").exists():
        (folder / "images").symlink_to((source / "images").absolute())
    write_once(folder / "captions.jsonl", "".join(json.dumps(row) + "\n" for row in kept))


def train_base(data: str, out: Path) -> Path:
    """The base model, and a copy of it whose `b` is that of batches of 32,768."""
    import math

    import siglip2_jax
    from siglip2_jax.config import load_config
    from siglip2_jax.train.loop import train

    base, low = out / "base", out / "base-low"
    train(load_config(str(ROOT / "configs" / "own_pairs_base.py"), [f"data={data}"]), base)
    if not low.exists():
        model = siglip2_jax.load(base)
        model.params = {**model.params, "b": model.params["b"] - math.log(32_768 / 64)}
        model.save(low, "orbax")
    return base


def fine_tune(out: Path, part: str, settings: dict[str, str], seed: int) -> dict[str, Any]:
    """Scores before and after one run, and its time."""
    from siglip2_jax.config import load_config
    from siglip2_jax.data.text import read_rows
    from siglip2_jax.recipes import locate
    from siglip2_jax.train.loop import train

    settings = USUAL | settings
    low = settings.pop("start", "") == "low"
    settings["base"] = str(out / ("base-low" if low else "base"))
    settings |= {"data": str(out / f"pairs-{seed}"), "seed": str(seed), "steps": str(STEPS)}
    settings |= {"evals.0.every": "1000", "evals.1.every": "1000"}
    settings["evals.1.count"] = "100"
    workdir = out / f"run-{part}"
    shutil.rmtree(workdir, ignore_errors=True)
    start = time.process_time()
    assignments = [f"{name}={value}" for name, value in settings.items()]
    train(load_config(locate("own_pairs"), assignments), workdir)
    rows = [row for _, row in read_rows(workdir / "metrics.jsonl")]
    before, after = (
        {name: round(value, 4) for name, value in row.items() if name.startswith("eval/")}
        for row in (rows[0], rows[-1])
    )
    return {"cpu_s": round(time.process_time() - start), "before": before, "after": after}


def cell(values: list[float]) -> str:
    """The mean; of several values, also the lowest and the highest."""
    mean = f"{np.mean(values):.1f}" if values else "not measured"
    return mean if len(values) < 2 else f"{mean} ({min(values):.0f} to {max(values):.0f})"


def table(rows: list[dict[str, Any]], kind: str) -> str:
    """One line a setting, of means over the seeds."""
    usual = [row for row in rows if row["name"] == USUAL_ARM]
    if kind == "what learns":
        groups = [(name, [row for row in rows if row["name"] == name]) for name in ARMS]
    else:
        usual = [row for row in usual if row["seed"] == 0]
        groups = [(name, [row for row in rows if row["name"] == name]) for name in FACTORS]
        groups = [("none: all parameters, seed 0", usual), *groups]
    lines = [f"| {kind} | {' | '.join(METRICS.values())} |", "|---" * (len(METRICS) + 1) + "|"]
    for when, name, group in (
        ("before", "before fine-tuning", usual),
        *(("after", name, group) for name, group in groups),
    ):
        cells = [cell([100 * row[when][metric] for row in group]) for metric in METRICS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_tables(rows: list[dict[str, Any]]) -> None:
    """Puts the tables between their marks in the page."""
    page = PAGE.read_text()
    for kind in ("what learns", "one change"):
        start, end = f"<!-- table: {kind} -->\n", f"<!-- end of table: {kind} -->"
        head, _, rest = page.partition(start)
        _, _, tail = rest.partition(end)
        page = f"{head}{start}\n{table(rows, kind)}\n\n{end}{tail}"
    PAGE.write_text(page)


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="directory with the data sets")
    parser.add_argument("--out", type=Path, required=True, help="workdirs and results")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, help="seeds, and the single changes"
    )
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    from siglip2_jax.data.text import read_rows

    logging.basicConfig(level=logging.INFO)
    train_base(str(args.data), args.out)
    results = args.out / "results.jsonl"
    plan = [("what learns", name, ARMS[name], seed) for seed in SEEDS for name in ARMS]
    plan += [("one change", name, FACTORS[name], 0) for name in FACTORS]
    for kind, name, settings, seed in plan:
        part = str(seed) if kind == "what learns" else CHANGES
        rows = [row for _, row in read_rows(results)] if results.exists() else []
        key = {"kind": kind, "name": name, "seed": seed, "steps": STEPS}
        if part not in args.only or any(key.items() <= row.items() for row in rows):
            continue
        write_pairs(args.data, args.out / f"pairs-{seed}", seed)
        row = key | fine_tune(args.out, part, settings, seed)
        with results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
    rows = [row for _, row in read_rows(results)]
    RESULTS.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    write_tables(rows)


if __name__ == "__main__":
    main()
