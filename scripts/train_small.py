"""Trains a small model from scratch on real images, in a process of its own, and records how well.

    python scripts/train_small.py flickr8k --data DIR --workdir /tmp/flickr8k
    python scripts/train_small.py caltech101 --data DIR --workdir /tmp/caltech101

DIR holds `flickr8k_1k` (captions.jsonl) and `caltech101_20` (labels.jsonl), each with its `images`;
rows have a "split", train or val. The figures, the curve, the command and the versions go to
WORKDIR/report.json. Exits with 1 if a target is missed, or the CPU time of `--minutes`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax

from siglip2_jax.config import load_config
from siglip2_jax.data.text import read_rows
from siglip2_jax.models.siglip2 import abstract_model
from siglip2_jax.recipes import locate

TARGETS = {
    "flickr8k": {"eval/val/image_to_text@10": 0.25, "eval/val/text_to_image@10": 0.25},
    "caltech101": {"eval/val/top1": 0.25},
}
"""The least value of the last measurement; chance is 0.10, 0.10 and 0.01."""
PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "numpy", "pillow")


def train(dataset: str, data: str, workdir: Path) -> dict[str, Any]:
    """Runs `siglip2 train` to its end; the command, and minutes of CPU (user + system) and wall."""
    recipe = f"small_{dataset}"
    command = ["siglip2", "train", recipe, "--workdir", str(workdir), "--no-distributed"]
    entry = "import sys; from siglip2_jax.cli import main; sys.exit(main())"
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", entry, *command[1:]], check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "command": f"SIGLIP2_DATA={data} JAX_PLATFORMS=cpu {' '.join(command)}",
        "parameters": count_parameters(recipe),
        "cpu_minutes": (used.ru_utime + used.ru_stime) / 60,
        "wall_minutes": (time.perf_counter() - start) / 60,
    }


def count_parameters(recipe: str) -> int:
    """Numbers in the model of a recipe."""
    _, shapes = abstract_model(load_config(locate(recipe)).model)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def read_curve(workdir: Path) -> list[dict[str, float]]:
    """Step, loss and measurements of every logged step that has measurements."""
    rows = [row for _, row in read_rows(workdir / "metrics.jsonl")]
    keep = [{k: v for k, v in row.items() if k in ("step", "loss") or "eval/" in k} for row in rows]
    return [row for row in keep if len(row) > 2]


def judge(dataset: str, curve: list[dict[str, float]], figures: dict[str, Any], minutes: float):
    """What was found beside what was wanted, by name."""
    found = {
        name: {"found": curve[-1][name], "at_least": least, "met": curve[-1][name] >= least}
        for name, least in TARGETS[dataset].items()
    }
    used = figures["cpu_minutes"]
    return found | {"cpu_minutes": {"found": used, "at_most": minutes, "met": used <= minutes}}


def main() -> int:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset", choices=sorted(TARGETS))
    parser.add_argument("--data", required=True, help="directory with the data sets")
    parser.add_argument("--workdir", required=True, type=Path, help="must not exist yet")
    parser.add_argument("--minutes", type=float, default=45, help="of CPU that it may take")
    args = parser.parse_args()
    if args.workdir.exists():
        parser.error(f"{args.workdir} exists; a resumed run's time would be a part of it only")
    os.environ |= {"SIGLIP2_DATA": args.data, "JAX_PLATFORMS": "cpu"}
    figures = train(args.dataset, args.data, args.workdir)
    curve = read_curve(args.workdir)
    targets = judge(args.dataset, curve, figures, args.minutes)
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    report = figures | {
        "targets": targets,
        "curve": curve,
        "versions": {"python": platform.python_version()} | versions,
    }
    (args.workdir / "report.json").write_text(json.dumps(report, indent=2))
    print(json.dumps(report, indent=2))
    return 0 if all(target["met"] for target in targets.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
