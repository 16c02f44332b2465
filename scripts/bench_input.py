"""Images a second that one core prepares for training, by source and by way of preparation.

Writes the same images as a folder, a tar and ArrayRecord files to a temporary directory and reads
them with the pipeline of training, on one core: every thread of the process is kept on it. Seconds
are those of CPU time, so that other work on the machine hardly counts. Prints median and range of
the repeats, then where the time goes for each way of preparation. With --size, every image is a
sheet of images side by side in their own resolution; images that are enlarged would have less to
decode than real ones.

    python scripts/bench_input.py --size 1024x768 [--photos DIR] [--budget 256] [--json FILE]

How many cores a host needs: `siglip2 plan CONFIG --images-per-core-second RATE`. Whether a run has
enough: `data_wait` in its metrics.jsonl stays near 0 (see siglip2_jax/train/throughput.py).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from math import isqrt
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
from PIL import Image

from siglip2_jax.cli.options import positive
from siglip2_jax.data import prepare as preparation
from siglip2_jax.data.collate import collate
from siglip2_jax.data.lengths import StepSchedule
from siglip2_jax.data.pipeline import Pipeline
from siglip2_jax.data.prepare import Prepare
from siglip2_jax.data.records import Records
from siglip2_jax.data.sources import Folder, Source
from siglip2_jax.data.tars import Tars
from siglip2_jax.data.tools.pack import pack
from siglip2_jax.data.views import SelfSupervisedViews
from siglip2_jax.demo import HERE, TOKENIZER, shipped_examples
from siglip2_jax.preprocess import image as preprocessing
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.preprocess.tokenizer import Tokenizer
from siglip2_jax.progress import progress

PATCH = 16
BATCH = 16
# Whose calls count as what; all other time is that of cutting, scaling and padding patches.
PARTS: dict[str, tuple[tuple[Any, str], ...]] = {
    "decode": ((ImagePreprocessor, "open"),),
    "resize": (
        (preparation, "resize_antialias"),
        (preprocessing, "resize_antialias"),
        (preprocessing, "resize_no_antialias"),
        (preprocessing, "resize_pillow"),
    ),
    "views": ((SelfSupervisedViews, "__call__"),),
    "tokenise": ((Tokenizer, "__call__"),),
}
COLUMNS = ("decode", "resize", "views", "patchify", "tokenise")


def pin(core: int | None) -> int | None:
    """Keeps all threads, those of libraries too, on one core; None where the system cannot."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    core = max(os.sched_getaffinity(0)) if core is None else core
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), {core})
    return core


def sheet(photos: list[Image.Image], first: int, size: tuple[int, int]) -> Image.Image:
    """Images side by side from number `first` on, until width and height are filled."""
    image, index, top = Image.new("RGB", size), first, 0
    while top < size[1]:
        left, bottom = 0, size[1]
        while left < size[0]:
            photo = photos[index % len(photos)]
            image.paste(photo, (left, top))
            left, bottom, index = left + photo.width, min(bottom, top + photo.height), index + 1
        top = bottom
    return image


def encoded(paths: list[Path], count: int, size: tuple[int, int] | None) -> list[bytes]:
    """The images to read: the files themselves, or sheets of them as JPEGs of quality 90."""
    if size is None:
        return [paths[i % len(paths)].read_bytes() for i in range(count)]
    photos = [Image.open(path).convert("RGB") for path in paths[: 4 * count]]
    files = []
    for i in range(count):
        stream = io.BytesIO()
        sheet(photos, 5 * i, size).save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())
    return files


def write_sources(files: list[bytes], directory: Path) -> dict[str, Source]:
    """The same examples in three forms."""
    shipped = shipped_examples()
    captions = [shipped[i % len(shipped)].captions for i in range(len(files))]
    folder = directory / "folder"
    (folder / "images").mkdir(parents=True)
    rows = []
    with tarfile.open(directory / "photos.tar", "w") as tar:
        for i, (data, texts) in enumerate(zip(files, captions, strict=True)):
            (folder / "images" / f"{i:05d}.jpg").write_bytes(data)
            rows.append(json.dumps({"file": f"{i:05d}.jpg", "captions": texts}))
            fields = json.dumps({"captions": texts}).encode()
            for suffix, content in (("jpg", data), ("json", fields)):
                member = tarfile.TarInfo(f"{i:05d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    (folder / "captions.jsonl").write_text("\n".join(rows))
    pack(Folder(str(folder)), directory / "records")
    return {
        "folder": Folder(str(folder)),
        "tar": Tars(str(directory / "photos.tar")),
        "ArrayRecord": Records(str(directory / "records")),
    }


def ways(budget: int, tokenizer: Tokenizer) -> dict[str, Prepare]:
    """Every way of preparation that the package has."""
    side = isqrt(budget) * PATCH
    native, native_hf = (ImagePreprocessor(PATCH, None, mode) for mode in ("reference", "hf"))
    fixed, fixed_hf = (ImagePreprocessor(PATCH, side, mode) for mode in ("reference", "hf"))
    views = SelfSupervisedViews(PATCH, global_size=side)
    return {
        "native": Prepare(native, tokenizer),
        "native, scaled decode": Prepare(native, tokenizer, scaled_decode=True),
        "native, square": Prepare(native, tokenizer, aspect="square"),
        "native, hf": Prepare(native_hf, tokenizer),
        "native, hf, scaled decode": Prepare(native_hf, tokenizer, scaled_decode=True),
        f"{side} px": Prepare(fixed, tokenizer),
        f"{side} px, hf": Prepare(fixed_hf, tokenizer),
        f"{side} px, hf, scaled decode": Prepare(fixed_hf, tokenizer, scaled_decode=True),
        f"{side} px, 1 + 8 views": Prepare(fixed, tokenizer, (views,)),
    }


def images_per_second(source: Source, prepare: Prepare, budget: int, count: int) -> float:
    """Reads `count` examples once, with the pipeline of training."""
    steps = count // BATCH
    reading = StepSchedule(((budget, BATCH),), steps)
    pipeline = Pipeline(source, prepare, seed=0, threads=1)
    with closing(pipeline.batches(reading)) as batches:  # opens the source, starts no work
        start = time.process_time()
        bad = sum(loaded.bad for loaded in batches)
        seconds = time.process_time() - start
    if bad:
        raise ValueError(f"{bad} of {count} images cannot be read; choose other ones")
    return count / seconds


@contextmanager
def stopwatch() -> Iterator[dict[str, float]]:
    """Seconds spent in each of the `PARTS` meanwhile."""
    spent = dict.fromkeys(PARTS, 0.0)

    def timed(part: str, function: Callable) -> Callable:
        def call(*arguments: Any, **options: Any) -> Any:
            start = time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                spent[part] += time.process_time() - start

        return call

    with ExitStack() as stack:
        for part, functions in PARTS.items():
            for owner, name in functions:
                wrapper = timed(part, getattr(owner, name))
                stack.enter_context(mock.patch.object(owner, name, wrapper))
        yield spent


def milliseconds(prepare: Prepare, examples: list[dict], budget: int) -> dict[str, float]:
    """Time per image of each part of the preparation, of examples in memory."""
    rng = np.random.default_rng(0)
    with stopwatch() as spent:
        start = time.process_time()
        for first in range(0, len(examples), BATCH):
            items = [prepare(example, rng, budget) for example in examples[first : first + BATCH]]
            collate(items, prepare.num_tokens(budget))
        whole = time.process_time() - start
    spent["patchify"] = whole - sum(spent.values())
    return {part: 1e3 * seconds / len(examples) for part, seconds in spent.items()}


def measure(sources: dict[str, Source], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs every way on every source in turns, `args.repeats` times after one to warm up."""
    prepared = ways(args.budget, Tokenizer.load(args.tokenizer))
    opened = sources["ArrayRecord"].open()
    examples = [opened[i] for i in range(args.count)]
    rates = {name: {source: [] for source in sources} for name in prepared}
    parts: dict[str, list[dict[str, float]]] = {name: [] for name in prepared}
    with progress("measuring") as show:
        for turn in range(args.repeats + 1):
            count = args.count if turn else BATCH
            for done, (name, prepare) in enumerate(prepared.items()):
                show(turn * len(prepared) + done, (args.repeats + 1) * len(prepared), name)
                for label, source in sources.items():
                    rate = images_per_second(source, prepare, args.budget, count)
                    if turn:
                        rates[name][label].append(rate)
                if turn:
                    parts[name].append(milliseconds(prepare, examples, args.budget))
    return [
        {
            "way": name,
            "images_per_s": rates[name],
            "ms": {part: float(np.median([x[part] for x in parts[name]])) for part in COLUMNS},
        }
        for name in prepared
    ]


def tables(rows: list[dict[str, Any]]) -> str:
    """Both tables, in Markdown."""
    sources = list(rows[0]["images_per_s"])
    lines = [f"| images/s, one core | {' | '.join(sources)} |", "|---" * (len(sources) + 1) + "|"]
    for row in rows:
        found = [
            f"{np.median(x):.0f} ({min(x):.0f}-{max(x):.0f})" for x in row["images_per_s"].values()
        ]
        lines.append(f"| {row['way']} | {' | '.join(found)} |")
    lines += ["", f"| share | ms/image | {' | '.join(COLUMNS)} |"]
    lines.append("|---" * (len(COLUMNS) + 2) + "|")
    for row in rows:
        whole = sum(row["ms"].values())
        shares = [f"{row['ms'][part] / whole:.0%}" for part in COLUMNS]
        lines.append(f"| {row['way']} | {whole:.1f} | {' | '.join(shares)} |")
    return "\n".join(lines)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photos", type=Path, default=HERE / "photos", help="a folder of JPEGs")
    parser.add_argument("--size", help="WIDTHxHEIGHT of the images; default: that of the images")
    parser.add_argument("--budget", type=positive, default=256, help="patches of an image")
    parser.add_argument("--count", type=positive, default=64, help=f"images, {BATCH} at a time")
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument("--core", type=int, help="which one to run on; default: the last")
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    args.count = -(-args.count // BATCH) * BATCH
    try:
        args.size = tuple(map(int, args.size.split("x"))) if args.size else None
        if args.size and (len(args.size) != 2 or min(args.size) < 1):
            raise ValueError
    except ValueError:
        parser.error(f"--size is {args.size!r}; write it as 1024x768")
    return args


def main() -> None:
    """Runs the script."""
    args = parse_args()
    core = pin(args.core)
    names = sorted(x for x in args.photos.glob("*") if x.suffix.lower() in (".jpg", ".jpeg"))
    if not names:
        raise SystemExit(f"{args.photos} holds no .jpg; name a folder of JPEGs")
    files = encoded(names, args.count, args.size)
    with tempfile.TemporaryDirectory() as directory:
        rows = measure(write_sources(files, Path(directory)), args)
    kilobytes = sum(map(len, files)) / len(files) / 1e3
    size = "x".join(map(str, args.size)) if args.size else "their own size"
    print(f"{args.count} JPEGs of {size}, {kilobytes:.0f} KB, {args.budget} patches, core {core}\n")
    print(tables(rows))
    if args.json:
        figures = {"size": args.size, "kilobytes": kilobytes, "core": core, "ways": rows}
        args.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
