"""Embedding of many small images end to end, beside the model's own rate and memory over time.

Writes the same images, one in twenty of them broken, as files, tars and Parquet, and embeds each
kind into shards (`inference.shards`) with random weights. The model's own rate is that of the same
program on patches that are ready, measured in turns with the shards. Memory is the resident set of
this process and of its workers; its slope is a least-squares line over the second half. Needs the
extra `search`.

    python scripts/bench_embed.py [--images 100000] [--kinds files,tar,Parquet] [--json FILE]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from siglip2_jax import Embedder
from siglip2_jax.data.items.find import find_items
from siglip2_jax.data.items.reader import ItemReader
from siglip2_jax.inference.programs import fill, place, programs, run_batch
from siglip2_jax.inference.shards import Options, ShardRun, merge
from siglip2_jax.models.config import ModelConfig, TextConfig, VisionConfig
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.testing import random_params

BROKEN = 20  # one in so many
IN_A_FILE, IN_A_GROUP, IN_A_FOLDER = 10_000, 1_000, 1_000
SECONDS_BETWEEN_LOOKS = 0.5


def model(width: int, depth: int) -> Embedder:
    """A NaFlex model of random weights with patches of 16 pixels."""
    vision = VisionConfig(
        width=width,
        depth=depth,
        mlp_dim=4 * width,
        num_heads=width // 64,
        patch_size=16,
        grid=16,
        image_size=None,
    )
    text = TextConfig(width=64, depth=1, mlp_dim=64, num_heads=1, vocab_size=1024, embed_dim=width)
    config = ModelConfig(vision=vision, text=text)
    params = jax.tree.map(jax.device_put, random_params(config))
    return Embedder(config, params, ImagePreprocessor(patch_size=16, image_size=None))


def images(count: int, size: tuple[int, int]) -> Iterator[bytes]:
    """Small JPEGs, each another one, some of them cut short, empty or no image at all."""
    rng = np.random.default_rng(0)
    for i in range(count):
        stream = io.BytesIO()
        small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
        small.resize(size).save(stream, "JPEG", quality=80)
        data = stream.getvalue()
        if i % BROKEN == BROKEN - 1:
            data = (data[: len(data) // 3], b"", b"no image")[i // BROKEN % 3]
        yield data


def write_files(directory: Path, count: int, size: tuple[int, int]) -> None:
    """A file an image, in folders."""
    for i, data in enumerate(images(count, size)):
        folder = directory / f"{i // IN_A_FOLDER:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:07d}.jpg").write_bytes(data)


def write_tars(directory: Path, count: int, size: tuple[int, int]) -> None:
    """Webdataset tars."""
    directory.mkdir()
    data = images(count, size)
    for start in range(0, count, IN_A_FILE):
        with tarfile.open(directory / f"{start // IN_A_FILE:04d}.tar", "w") as tar:
            for i in range(start, min(start + IN_A_FILE, count)):
                content = next(data)
                member = tarfile.TarInfo(f"{i:07d}.jpg")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def write_parquet(directory: Path, count: int, size: tuple[int, int]) -> None:
    """Parquet files as Hugging Face's `datasets` writes them."""
    directory.mkdir()
    data = images(count, size)
    for start in range(0, count, IN_A_FILE):
        rows = [
            {"bytes": next(data), "path": f"{i:07d}.jpg"}
            for i in range(start, min(start + IN_A_FILE, count))
        ]
        path = directory / f"{start // IN_A_FILE:04d}.parquet"
        parquet.write_table(pa.table({"image": rows}), path, row_group_size=IN_A_GROUP)


KINDS = {"files": write_files, "tar": write_tars, "Parquet": write_parquet}


class Memory:
    """Resident memory of this process and its children, looked at twice a second."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.bytes: list[int] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        start = time.monotonic()
        while not self._over.wait(SECONDS_BETWEEN_LOOKS):
            self.seconds.append(time.monotonic() - start)
            self.bytes.append(resident())

    def at_quarters(self) -> list[float]:
        """Megabytes after each quarter of the time."""
        last = len(self.bytes) - 1
        return [self.bytes[last * quarter // 4] / 1e6 for quarter in range(1, 5)]

    def slope(self) -> float:
        """Bytes per second, over the second half."""
        half = len(self.seconds) // 2
        if len(self.seconds) - half < 2:
            return float("nan")
        return float(np.polyfit(self.seconds[half:], self.bytes[half:], 1)[0])


def resident() -> int:
    """Resident memory of this process and its children; pages that they share count once each."""
    pids = [os.getpid()]
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    pids += [int(x) for x in children.read_text().split()] if children.exists() else []
    total = 0
    for pid in pids:
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except OSError:  # it has ended
            continue
    return total * os.sysconf("SC_PAGE_SIZE")


def own_rate(
    embedder: Embedder, run: ShardRun, options: Options, seconds: float
) -> tuple[float, float]:
    """Images a second where patches are on the device already, and milliseconds of CPU an image."""
    with ItemReader(
        run.shards[:1],
        embedder.preprocess,
        max_num_patches=options.max_num_patches,
        batch_size=run.batch_size,
    ) as reader:
        patches = place(fill(next(iter(reader)).patches, run.batch_size), embedder.mesh)
    embed_image = programs(embedder.config, embedder.dtype).embed_image
    program = partial(embed_image, normalize=True)
    np.asarray(run_batch(program, embedder.params, patches, embedder.mesh))
    start, cpu, done, before = time.perf_counter(), time.process_time(), 0, None
    while time.perf_counter() - start < seconds:
        rows = run_batch(program, embedder.params, patches, embedder.mesh)
        if before is not None:
            np.asarray(before)
            done += run.batch_size
        before = rows
    cpu = time.process_time() - cpu
    return done / (time.perf_counter() - start), cpu / done * 1e3


def measure(kind: str, directory: Path, embedder: Embedder, args: argparse.Namespace) -> dict:
    """Writes the images in one way, and embeds them."""
    source, out = directory / kind, directory / f"{kind} embeddings"
    KINDS[kind](source, args.images, args.size)
    options = Options(
        max_num_patches=args.max_num_patches, batch_size=args.batch_size, workers=args.workers
    )
    run = ShardRun(embedder, find_items([str(source)]), out, options)
    alone, summaries = [own_rate(embedder, run, options, args.seconds)], []
    with Memory() as memory:
        for number in range(len(run.shards)):
            start = time.process_time()
            summaries.append((run.embed([number]), time.process_time() - start))
            alone.append(own_rate(embedder, run, options, args.seconds))
    images, errors, seconds, waited = (
        sum(getattr(summary, name) for summary, _ in summaries)
        for name in ("images", "errors", "seconds", "waited")
    )
    merged = merge(out)
    assert (merged.images, merged.errors) == (images, errors)
    ratios = [
        summary.images / summary.seconds / ((before[0] + after[0]) / 2)
        for (summary, _), (before, after) in zip(summaries, pairwise(alone), strict=True)
    ]
    return {
        "kind": kind,
        "shards": len(run.shards),
        "images": images,
        "errors": errors,
        "seconds": seconds,
        "images_per_s": images / seconds,
        "model_images_per_s": [rate for rate, _ in alone],
        "share_of_model": ratios,
        "cpu_ms": [sum(cpu for _, cpu in summaries) / images * 1e3, median(c for _, c in alone)],
        "data_wait": waited / seconds,
        "mb_at_quarters": memory.at_quarters(),
        "mb_per_100000_images": memory.slope() * memory.seconds[-1] / images * 1e5 / 1e6,
    }


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=list(KINDS))
    parser.add_argument("--size", type=int, nargs=2, default=(64, 64), help="of images, in pixels")
    parser.add_argument("--width", type=int, default=512, help="of the model")
    parser.add_argument("--depth", type=int, default=6, help="of the model")
    parser.add_argument("--max-num-patches", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 for threads")
    parser.add_argument("--seconds", type=float, default=5, help="of the model alone, each time")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    if unknown := set(args.kinds) - KINDS.keys():
        raise SystemExit(f"there is no kind {', '.join(unknown)}; choose of {', '.join(KINDS)}")
    args.size = tuple(args.size)
    embedder, rows = model(args.width, args.depth), []
    with tempfile.TemporaryDirectory() as directory:
        for kind in args.kinds:
            rows.append(row := measure(kind, Path(directory), embedder, args))
            print(row, file=sys.stderr)
    print(table(rows))
    if args.json:
        settings: dict[str, Any] = {k: v for k, v in vars(args).items() if k != "json"}
        args.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2))


def table(rows: list[dict]) -> str:
    """The figures in Markdown, a column for each kind of source."""
    lines = {
        "images": lambda x: f"{x['images']:,}",
        "broken": lambda x: f"{x['errors']:,}",
        "images/s": lambda x: f"{x['images_per_s']:.1f}",
        "the model alone, images/s": lambda x: f"{median(x['model_images_per_s']):.1f}",
        "share of the model's rate (median of shards)": lambda x: (
            f"{median(x['share_of_model']):.0%}"
        ),
        "CPU an image, and of the model alone, ms": lambda x: " and ".join(
            f"{ms:.2f}" for ms in x["cpu_ms"]
        ),
        "waiting for data": lambda x: f"{x['data_wait']:.1%}",
        "memory at the end, MB": lambda x: f"{x['mb_at_quarters'][-1]:.0f}",
        "growth, MB each 100,000 images": lambda x: f"{x['mb_per_100000_images']:.1f}",
    }
    kinds = " | ".join(row["kind"] for row in rows)
    head = [f"| | {kinds} |", "|---" * (len(rows) + 1) + "|"]
    return "\n".join(
        head + [f"| {name} | " + " | ".join(map(cell, rows)) + " |" for name, cell in lines.items()]
    )


if __name__ == "__main__":
    main()
