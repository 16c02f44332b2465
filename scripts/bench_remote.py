"""Training data from an object store, beside a local disk, webdataset and streaming.

A real server (fake-gcs-server) runs on this machine behind a proxy that makes every request wait.
All read the same JPEGs from it, prepare them alike with the same number of processes, and shuffle.
Prints for each: images a second after the first batch, seconds to the first batch, steps after the
first that waited for their batch and the longest wait, requests, bytes sent over bytes of the
images, and peak memory of the processes. A step takes no time, so that batches are read as fast as
they come, or the time that --step says, in which the machine is idle, as while a chip works.

    pip install -e ".[remote]" --group remote webdataset streaming-community torch
    python scripts/bench_remote.py [--latency 0.05] [--images 4096] [--step 0.15] [--json FILE]

Contestants whose package is missing are left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
import psutil
from PIL import Image

from siglip2_jax.data.blocks.shuffle import BlockShuffle
from siglip2_jax.data.collate import collate
from siglip2_jax.data.lengths import Lengths
from siglip2_jax.data.pipeline import Pipeline
from siglip2_jax.data.prepare import Prepare
from siglip2_jax.data.sources import Memory
from siglip2_jax.data.tars import Tars
from siglip2_jax.data.tools.pack import pack
from siglip2_jax.demo import TOKENIZER, shipped_examples
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.preprocess.tokenizer import Tokenizer

BUDGET = 256
BATCH = 64
SHARD = 1024
NO_WAIT = 0.1  # seconds that taking a batch that is ready may last: it is copied
CONTESTANTS = {
    "store": None,
    "local disk": None,
    "webdataset": "webdataset",
    "streaming": "streaming",
}


def make_images(count: int) -> tuple[dict[str, Any], ...]:
    """Different JPEGs of 512 x 384 cut from the shipped images, with their captions."""
    rng = np.random.default_rng(0)
    sources = [(Image.open(x.image).convert("RGB"), x.captions) for x in shipped_examples()]
    examples = []
    for i in range(count):
        image, captions = sources[i % len(sources)]
        left, top = rng.uniform(0, 0.3, 2) * image.size
        box = (left, top, left + 0.7 * image.width, top + 0.7 * image.height)
        stream = io.BytesIO()
        image.resize((512, 384), box=box).save(stream, "JPEG", quality=85)
        name = f"{i:06d}"
        examples.append({"image": stream.getvalue(), "captions": tuple(captions), "name": name})
    return tuple(examples)


def write_streaming(examples: Iterable[dict[str, Any]], folder: Path) -> None:
    """The examples as shards of streaming's own format, of about the size of the tars."""
    from streaming import MDSWriter

    columns = {"image": "bytes", "text": "str"}
    with MDSWriter(out=str(folder), columns=columns, size_limit=1 << 25) as writer:
        for example in examples:
            writer.write({"image": example["image"], "text": example["captions"][0]})


def prepare() -> Prepare:
    """Preparation that all share: native aspect ratio, 256 patches."""
    return Prepare(ImagePreprocessor(16, None), Tokenizer.load(TOKENIZER))


def our_batches(source: str, images: int, workers: int, seed: int) -> Iterator[Any]:
    """Batches of this package's pipeline, in an order of blocks."""
    lengths = Lengths(budgets=(BUDGET,), batch_scale=())
    pipeline = Pipeline(
        Tars(source), prepare(), seed, workers=workers, shuffle=BlockShuffle(), prefetch=4
    )
    return pipeline.batches(lengths.reading(seed, images // BATCH, BATCH))


def _from_pair(pair: tuple[bytes, str], work: Prepare) -> dict[str, Any]:
    example = {"image": pair[0], "captions": (pair[1],), "name": "image"}
    return work(example, np.random.default_rng(0), BUDGET)


def webdataset_batches(source: str, images: int, workers: int, seed: int) -> Iterator[Any]:
    """Batches of webdataset: whole tars in sequence, a buffer of 2,048 that is shuffled."""
    import torch
    import webdataset

    urls = [f"pipe:curl -s -L {url}" for url in json.loads(source)]
    dataset = webdataset.WebDataset(urls, shardshuffle=len(urls), seed=seed, empty_check=False)
    dataset = dataset.shuffle(2048).to_tuple("jpg", "json").map(_webdataset_pair)
    dataset = dataset.map(partial(_from_pair, work=prepare()))
    collator = partial(_collated, num_tokens=BUDGET)
    return iter(_loader(torch, dataset, workers, collator))


def _webdataset_pair(pair: tuple[bytes, bytes]) -> tuple[bytes, str]:
    return pair[0], json.loads(pair[1])["captions"][0]


def streaming_batches(source: str, images: int, workers: int, seed: int) -> Iterator[Any]:
    """Batches of streaming: shards are kept on local disk, samples shuffled in blocks."""
    import torch
    from streaming import StreamingDataset

    work = prepare()

    class Dataset(StreamingDataset):
        def __getitem__(self, at: int) -> dict[str, Any]:
            row = super().__getitem__(at)
            return _from_pair((row["image"], row["text"]), work)

    dataset = Dataset(
        remote=source, local=tempfile.mkdtemp(), shuffle=True, shuffle_seed=seed, batch_size=BATCH
    )
    return iter(_loader(torch, dataset, workers, partial(_collated, num_tokens=BUDGET)))


def _collated(items: list[dict[str, Any]], num_tokens: int) -> Any:
    batch = collate(items, num_tokens)
    return batch.image.pixels, batch.image.yx, batch.image.valid, batch.text


def _loader(torch: Any, dataset: Any, workers: int, collator: Any) -> Any:
    return torch.utils.data.DataLoader(
        dataset, BATCH, num_workers=workers, collate_fn=collator, prefetch_factor=4
    )


def consume(batches: Iterable[Any], images: int, step: float) -> dict[str, float]:
    """Reads all batches, with a pause of `step` seconds after each; times them."""
    asked = time.perf_counter()
    waits = []
    begin = end = 0.0
    for _ in islice(batches, images // BATCH):
        end = time.perf_counter()
        begin = begin or end
        waits.append(end - asked)
        time.sleep(step)
        asked = time.perf_counter()
    return {
        "images_per_s": BATCH * (len(waits) - 1) / (end - begin),
        "first_batch_s": waits[0],
        "waiting_steps": sum(wait > NO_WAIT for wait in waits[1:]),
        "longest_wait_s": max(waits[1:]),
    }


def run_contestant(args: argparse.Namespace) -> None:
    """Runs one contestant in this process, and prints its figures."""
    batches = {"webdataset": webdataset_batches, "streaming": streaming_batches}
    begin = batches.get(args.contestant, our_batches)
    figures = consume(begin(args.source, args.images, args.workers, 0), args.images, args.step)
    print(json.dumps(figures))


def peak_memory(process: subprocess.Popen, done: threading.Event) -> float:
    """Highest sum of the proportional memory of a process and its children, in GB."""
    highest = 0
    while not done.wait(0.5):
        try:
            parent = psutil.Process(process.pid)
            family = [parent, *parent.children(recursive=True)]
            highest = max(highest, sum(x.memory_full_info().pss for x in family))
        except psutil.Error:
            continue
    return highest / 1e9


def measure(name: str, source: str, args: argparse.Namespace, server: Any) -> dict[str, float]:
    """Runs a contestant in a process of its own; adds what the server has seen and its memory."""
    server.send("begin")
    command = [sys.executable, __file__, "--contestant", name, "--source", source]
    command += ["--images", str(args.images), "--workers", str(args.workers)]
    command += ["--step", str(args.step)]
    done, peak = threading.Event(), [0.0]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        watcher = threading.Thread(target=lambda: peak.append(peak_memory(process, done)))
        watcher.start()
        output, _ = process.communicate()
        done.set()
        watcher.join()
    if process.returncode:
        raise SystemExit(f"{name} ended with exit code {process.returncode}")
    server.send("end")
    requests, sent = server.recv()
    figures = json.loads(output.splitlines()[-1])
    return figures | {"requests": requests, "sent": sent, "peak_gb": peak[-1]}


def serve(source: str, root: str, latency: float, connection: Any) -> None:
    """Runs a server of the files in `source` and its proxy until the connection closes."""
    import stores

    store = stores.GoogleStore(Path(root))
    with stores.running(store):
        for path in Path(source).rglob("*.*"):
            store.put(str(path.relative_to(source)), path.read_bytes())
        store.latency = latency
        connection.send((store.url, store.variables()))
        try:
            while connection.recv() == "begin":
                requests, sent = len(store.requests), store.sent
                connection.recv()
                connection.send((len(store.requests) - requests, store.sent - sent))
        except EOFError:
            pass


def table(rows: dict[str, dict[str, float]], size: int) -> str:
    """The figures, in Markdown."""
    names = ["images/s", "first batch, s", "steps that waited", "longest wait, s"]
    names += ["requests", "sent / size", "GB"]
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for name, x in rows.items():
        lines.append(
            f"| {name} | {x['images_per_s']:.0f} | {x['first_batch_s']:.1f} "
            f"| {x['waiting_steps']:.0f} | {x['longest_wait_s']:.2f} | {x['requests']:.0f} "
            f"| {x['sent'] / size:.2f} | {x['peak_gb']:.1f} |"
        )
    return "\n".join(lines)


def compare(args: argparse.Namespace) -> None:
    """Packs the images, starts the server, and measures all contestants in turns."""
    with tempfile.TemporaryDirectory() as directory:
        bucket, root = Path(directory, "files"), Path(directory, "store")
        (root / "bucket").mkdir(parents=True)
        examples = make_images(args.images)
        pack(Memory(examples), bucket / "tars", kind="tar", shard_size=SHARD)
        installed = {k for k, v in CONTESTANTS.items() if not v or importlib.util.find_spec(v)}
        if "streaming" in installed:
            write_streaming(examples, bucket / "streaming")
        size = sum(len(example["image"]) for example in examples)
        print(f"{args.images} JPEGs, {size / args.images / 1e3:.0f} KB each", file=sys.stderr)
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=serve, args=(str(bucket), str(root), args.latency, theirs)
        )
        process.start()
        theirs.close()
        url, variables = ours.recv()
        os.environ.update(variables, S3_ENDPOINT_URL=url)
        os.environ.update(AWS_ACCESS_KEY_ID="any", AWS_SECRET_ACCESS_KEY="any")
        tars = sorted(x.name for x in (bucket / "tars").glob("*.tar"))
        sources = {
            "store": "gs://bucket/tars",
            "local disk": str(bucket / "tars"),
            "webdataset": json.dumps([f"{url}/bucket/tars/{name}" for name in tars]),
            "streaming": "s3://bucket/streaming",
        }
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in sources}
        for _ in range(args.rounds):
            for name in sources:
                if name in installed.intersection(args.only):
                    rounds[name].append(measure(name, sources[name], args, ours))
        ours.close()
        process.join()
        rows = {
            name: {key: float(np.median([x[key] for x in runs])) for key in runs[0]}
            for name, runs in rounds.items()
            if runs
        }
        print(table(rows, size))
        if args.json:
            args.json.write_text(json.dumps(rounds, indent=2))


def main() -> None:
    """Runs the comparison, or one contestant of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--latency", type=float, default=0.05, help="seconds that a request waits")
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--step", type=float, default=0.0, help="seconds that a step takes")
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--rounds", type=int, default=3, help="the medians are printed")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--source", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contestant:
        run_contestant(args)
    else:
        compare(args)


if __name__ == "__main__":
    main()
