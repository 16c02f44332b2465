"""Trains a small decoder on annotated images until it knows them by heart, and measures how well.

    python scripts/train_decoder.py --data DIR --workdir /tmp/decoder

DIR holds `coco_mini`: `annotations.jsonl` with COCO's captions and boxes and a "split", and
`images`. Learned are the training images: the first caption of each, and every box whose category
has no other box in the image, so that the phrase says which one is meant. Measured are captions
that come back word for word, written token by token and all at once, and boxes found for their
phrases with an intersection over union of at least 0.5. Exits with 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from siglip2_jax.data.regions import from_coco
from siglip2_jax.data.text import read_rows
from siglip2_jax.inference import Captioner, load_captioner
from siglip2_jax.models.generate import abstract_decoder
from siglip2_jax.preprocess.text_norm import normalize

PATCHES = 48
TARGETS = {"captions_token_by_token": 0.9, "captions_at_once": 0.5, "boxes_at_iou_0.5": 0.9}


def make_rows(coco: Path) -> list[dict[str, Any]]:
    """Training images with one caption and the boxes whose phrases are unique in them."""
    rows = []
    for _, row in read_rows(coco / "annotations.jsonl"):
        if row["split"] != "train":
            continue
        regions = from_coco(row)
        count = Counter(region.phrase for region in regions)
        unique = [region.as_dict() for region in regions if count[region.phrase] == 1]
        size = {"width": row["width"], "height": row["height"]}
        caption = row["captions"][:1]
        rows.append({"file": row["file"], "captions": caption, "regions": unique, **size})
    return rows


def train(coco: Path, workdir: Path) -> dict[str, Any]:
    """Runs `siglip2 train` to its end; the command, and minutes of CPU (user + system) and wall."""
    command = ["siglip2", "train", "small_decoder", "--workdir", str(workdir / "run")]
    for name, value in {"data": coco, "rows": workdir / "rows.jsonl", "images": "images"}.items():
        command += ["--set", f"{name}={value}"]
    command.append("--no-distributed")
    entry = "import sys; from siglip2_jax.cli import main; sys.exit(main())"
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", entry, *command[1:]], check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "command": " ".join(command),
        "cpu_minutes": (used.ru_utime + used.ru_stime) / 60,
        "wall_minutes": (time.perf_counter() - start) / 60,
    }


def at_once(model: Captioner, paths: list[str]) -> list[str]:
    """Captions predicted in parallel: one pass over nothing but masks."""
    features = model.embedder.image_features(paths, max_num_patches=PATCHES)
    graphdef, _ = abstract_decoder(model.config)
    shape = len(paths), 1, model.config.length

    @jax.jit
    def write(params, tokens, valid):
        decoder = nnx.merge(graphdef, params)
        hidden = decoder(jnp.zeros(shape, jnp.int32), tokens, valid, jnp.ones(shape[:2], bool))
        return decoder.logits(hidden).argmax(-1)[:, 0]

    ids = np.asarray(write(model.params, features.tokens, features.valid))
    prefix = len(model.tokenizer.encode("cap:"))
    return [text.strip() for text in model.tokenizer.decode(ids[:, prefix:])]


def overlap(one: tuple[float, ...] | None, other: tuple[float, ...]) -> float:
    """Intersection over union of two boxes (left, top, right, bottom)."""
    if one is None:
        return 0.0
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    common = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return common / (sum(areas) - common)


def measure(coco: Path, rows: list[dict[str, Any]], run: Path) -> dict[str, Any]:
    """What the trained decoder knows of its images."""
    model = load_captioner(str(run))
    paths = [str(coco / "images" / row["file"]) for row in rows]
    wanted = [normalize(row["captions"][0], "reference").strip() for row in rows]
    written = model.caption(paths, max_num_patches=PATCHES)
    parallel = at_once(model, paths)
    asked = [(path, row, x) for path, row in zip(paths, rows, strict=True) for x in row["regions"]]
    places, phrases = [path for path, _, _ in asked], [x["phrase"] for _, _, x in asked]
    boxes = model.locate(places, phrases, max_num_patches=PATCHES)
    ious = []
    for box, (_, row, region) in zip(boxes, asked, strict=True):
        ymin, xmin, ymax, xmax = region["box"]
        width, height = row["width"], row["height"]
        ious.append(overlap(box, (xmin * width, ymin * height, xmax * width, ymax * height)))
    same = [a.strip() == b for a, b in zip(written, wanted, strict=True)]
    same_at_once = [a == b for a, b in zip(parallel, wanted, strict=True)]
    return {
        "photos": len(rows),
        "boxes": len(ious),
        "captions_token_by_token": float(np.mean(same)),
        "captions_at_once": float(np.mean(same_at_once)),
        "boxes_at_iou_0.5": float(np.mean(np.array(ious) >= 0.5)),
        "examples": list(zip(wanted, written, parallel, strict=True))[:3],
    }


def main() -> int:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, type=Path, help="directory with coco_mini")
    parser.add_argument("--workdir", required=True, type=Path, help="must not exist yet")
    args = parser.parse_args()
    if args.workdir.exists():
        parser.error(f"{args.workdir} exists; a resumed run's time would be a part of it only")
    os.environ["JAX_PLATFORMS"] = "cpu"  # of the training process; and here:
    jax.config.update("jax_platforms", "cpu")
    coco, workdir = (args.data / "coco_mini").resolve(), args.workdir.resolve()
    workdir.mkdir(parents=True)
    rows = make_rows(coco)
    (workdir / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = train(coco, workdir) | measure(coco, rows, workdir / "run")
    report["targets"] = {
        name: {"found": report[name], "at_least": least, "met": report[name] >= least}
        for name, least in TARGETS.items()
    }
    (workdir / "report.json").write_text(json.dumps(report, indent=2))
    print(json.dumps(report, indent=2))
    return 0 if all(target["met"] for target in report["targets"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
