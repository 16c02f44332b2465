"""Opening of large data sets: seconds of CPU time, memory and what every worker process is sent.

Writes ArrayRecord shards of a few small records, a folder's list of rows (without images) and the
manifest of tars of 10,000 examples (without the tars) to a temporary directory, and opens each in a
process of its own.

    python scripts/bench_open.py [--shards 10000] [--rows 1000000] [--tars 100000]
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from siglip2_jax.data.manifest import BLOCK_SIZE, Entry, join
from siglip2_jax.data.manifest_files import FOLDER, About, Shard, encode_part, part_path
from siglip2_jax.data.records import SUFFIX, Records, encode_example
from siglip2_jax.data.sources import Folder, Source
from siglip2_jax.data.stores import File
from siglip2_jax.data.tars import Tars
from siglip2_jax.fingerprint import fingerprint

RECORDS = 4  # of a shard
SAMPLES = 10_000  # of a tar


def write_shards(directory: Path, count: int) -> None:
    """Shards with the names that `pack` gives them."""
    from array_record.python.array_record_module import ArrayRecordWriter

    directory.mkdir()
    record = encode_example({"image": bytes(100), "captions": ("a text",), "name": "x"})
    for i in range(count):
        path = directory / f"examples-{i:05d}-of-{count:05d}{SUFFIX}"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for _ in range(RECORDS):
            writer.write(record)
        writer.close()


def write_counts(directory: Path, count: int) -> None:
    """The file of counts that `pack` leaves beside its shards."""
    counts = {"records": [RECORDS] * count}
    (directory / "examples.counts.json").write_text(json.dumps(counts))


def write_rows(directory: Path, count: int) -> None:
    """Rows of a usual length."""
    directory.mkdir()
    with (directory / "captions.jsonl").open("w") as file:
        for i in range(count):
            row = {"file": f"{i // 1000:04d}/{i:09d}.jpg", "caption": f"a photo of number {i}"}
            file.write(json.dumps(row) + "\n")


def write_manifest(directory: Path, count: int) -> None:
    """The manifest of tars that `pack` wrote on 16 machines."""
    names = [f"examples-{i:05d}-of-{count:05d}.tar" for i in range(count)]
    about = About(".tar", "*.tar", count, fingerprint(names), BLOCK_SIZE)
    lengths = np.full(-(-SAMPLES // BLOCK_SIZE), 30_000 * BLOCK_SIZE, np.uint32)
    (directory / FOLDER).mkdir(parents=True)
    for shard in (Shard(i, 16) for i in range(16)):
        entries = [
            Entry(File(f"{directory}/{names[i]}", int(lengths.sum()), ""), SAMPLES, 0, lengths, {})
            for i in shard.share(count)
        ]
        part = encode_part(join(str(directory), BLOCK_SIZE, entries), about)
        Path(part_path(str(directory), shard)).write_bytes(part)


def measure(source: Source) -> dict[str, float]:
    """Opens a source in this process."""
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu, start = time.process_time(), time.perf_counter()
    examples = source.open()
    figures = {"cpu_s": time.process_time() - cpu, "s": time.perf_counter() - start}
    figures["mb"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
    return figures | {"pickled_mb": len(pickle.dumps(examples)) / 1e6, "examples": len(examples)}


def in_a_process(kind: str, directory: Path) -> None:
    """Measures in a new process and prints a row."""
    command = [sys.executable, __file__, "--open", kind, str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    if done.returncode:
        raise SystemExit(done.stderr)
    found = json.loads(done.stdout)
    print(
        f"| {kind} | {found['examples']:,.0f} | {found['cpu_s']:.2f} | {found['s']:.2f} | "
        f"{found['mb']:.0f} | {found['pickled_mb']:.1f} |"
    )


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--tars", type=int, default=100_000)
    parser.add_argument("--open", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.open:
        kind, directory = args.open
        kinds = {"rows": Folder, "tars": Tars}
        source = kinds.get(kind, Records)(directory)
        print(json.dumps(measure(source)))
        return
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        print("| | examples | CPU s | s | MB | MB pickled |\n|---|---|---|---|---|---|")
        write_rows(directory / "folder", args.rows)
        in_a_process("rows", directory / "folder")
        write_shards(directory / "pack", args.shards)
        in_a_process("shards", directory / "pack")
        write_counts(directory / "pack", args.shards)
        in_a_process("shards and counts", directory / "pack")
        write_manifest(directory / "tars", args.tars)
        in_a_process("tars", directory / "tars")


if __name__ == "__main__":
    main()
