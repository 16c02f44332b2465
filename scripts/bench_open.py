"""Opening of large data sets: seconds of CPU time, memory and what every worker process is sent.

Writes ArrayRecord shards of a few small records, a folder's list of rows (without images) and tars
with a manifest, all of which are the same file, to a temporary directory, and opens each in a
process of its own. `--store` opens the manifest from a store on this machine as well, whose
answers take 50 ms; it needs the dependency group `remote`. `--train` then trains three steps with
two workers on the tars and on 1,000 such examples, and compares the memory of the processes.

    python scripts/bench_open.py [--tars 100000] [--store] [--train]
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from PIL import Image

from siglip2_jax.config import Data, TrainConfig
from siglip2_jax.data.blocks.shuffle import BlockShuffle
from siglip2_jax.data.records import SUFFIX, Records, encode_example
from siglip2_jax.data.sources import Folder, Memory, Source
from siglip2_jax.data.stores.manifest import BLOCK_SIZE, join
from siglip2_jax.data.stores.manifest_files import FOLDER, About, Shard, encode_part, part_path
from siglip2_jax.data.stores.store import Store
from siglip2_jax.data.tar.blocks import index_blocks
from siglip2_jax.data.tars import Tars
from siglip2_jax.data.tools.pack import pack
from siglip2_jax.demo import shipped_examples
from siglip2_jax.recipes import tiny

RECORDS = 4  # of a shard
IN_A_TAR, PARTS = 10_000, 16
FEW = 1_000  # examples of the small run
STEPS, WORKERS = 3, 2
LATENCY = 0.05  # of the store's answers
SOURCES = {
    "rows": Folder,
    "shards": Records,
    "shards and counts": Records,
    "manifest": Tars,
    "manifest, from a store": Tars,
}


def config() -> TrainConfig:
    """The run of `--train`; the pattern of its tars is to be set."""
    run = tiny.config()
    (stage,) = run.stages
    data = Data(source=Tars("nowhere"), workers=WORKERS, shuffle=BlockShuffle())
    stage = dataclasses.replace(stage, data=data, steps=STEPS, evals=())
    return dataclasses.replace(run, stages=(stage,))


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


def write_tars(directory: Path, count: int, examples: int = IN_A_TAR) -> None:
    """Tars of images, all links to one file, and their manifest as several machines write it."""
    shipped, stream = shipped_examples()[0], io.BytesIO()
    Image.open(shipped.image).resize((64, 64)).save(stream, "JPEG")
    example = {"image": stream.getvalue(), "captions": shipped.captions}
    source = Memory(tuple(example | {"name": f"{i:05d}"} for i in range(examples)))
    directory.mkdir()
    pack(source, directory / "one", kind="tar", shard_size=examples)
    (file,) = Store().list(str(directory / "one"), ".tar")
    entry, _ = index_blocks(file, Store(), BLOCK_SIZE)
    entries = []
    for i in range(count):
        path = directory / f"examples-{i:06d}-of-{count:06d}.tar"
        path.symlink_to(file.path)
        entries.append(entry._replace(file=dataclasses.replace(file, path=str(path))))
    about = About(".tar", "*.tar", count, "", BLOCK_SIZE)
    (directory / FOLDER).mkdir()
    for shard in (Shard(i, PARTS) for i in range(PARTS)):
        share = [entries[i] for i in shard.share(count)]
        part = encode_part(join(str(directory), BLOCK_SIZE, share), about)
        Path(part_path(str(directory), shard)).write_bytes(part)


def peak() -> int:
    """The most kilobytes that this process has had in memory."""
    # Not `ru_maxrss`, which counts the process that started this one.
    words = Path("/proc/self/status").read_text().split()
    return int(words[words.index("VmHWM:") + 1])


def measure(source: Source) -> dict[str, float]:
    """Opens a source in this process."""
    memory = peak()
    cpu, start = time.process_time(), time.perf_counter()
    examples = source.open()
    figures = {"cpu_s": time.process_time() - cpu, "s": time.perf_counter() - start}
    figures["mb"] = (peak() - memory) / 1024
    return figures | {"pickled_mb": len(pickle.dumps(examples)) / 1e6, "examples": len(examples)}


def in_a_process(kind: str, directory: Path | str) -> None:
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


def from_a_store(directory: Path) -> None:
    """Opens the tars from a server on this machine that has their manifest alone."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from stores import GoogleStore, running

    root = directory.with_name("store")
    (root / "bucket").mkdir(parents=True)
    with running(GoogleStore(root)) as store:
        for part in (directory / "manifest").iterdir():
            store.put(f"tars/manifest/{part.name}", part.read_bytes())
        store.latency = LATENCY
        os.environ |= store.variables()
        in_a_process("manifest, from a store", "gs://bucket/tars")


def memory_of(process: int) -> int:
    """Bytes of a process, what it shares divided by those that share it; 0 once it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    return 0


def children(process: int) -> dict[int, str]:
    """The processes that a process has started, and their commands."""
    with suppress(OSError):
        pids = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        return {int(pid): Path(f"/proc/{pid}/cmdline").read_text() for pid in pids}
    return {}


def train(directory: Path) -> dict[str, float]:
    """Trains on tars.

    Returns:
      The most megabytes that the training process has taken, and the larger of its workers.
    """
    pattern = f"data.source.pattern={directory}"
    workdir = directory.with_name(f"{directory.name}.run")
    command = [sys.executable, "-m", "siglip2_jax", "train", __file__, "--workdir", str(workdir)]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    most = {"training": 0, "worker": 0}
    with subprocess.Popen([*command, "--set", pattern], env=env) as run:
        while run.poll() is None:
            most["training"] = max(most["training"], memory_of(run.pid))
            for child, its_command in children(run.pid).items():
                if "spawn_main" in its_command:
                    most["worker"] = max(most["worker"], memory_of(child))
            time.sleep(0.1)
    if run.returncode:
        raise SystemExit(f"training on {directory} failed")
    return {name: size / 1e6 for name, size in most.items()}


def compare_memory(small: Path, large: Path, examples: int) -> None:
    """Prints the memory of training on few and on all examples."""
    write_tars(small, 1, FEW)
    few, many = train(small), train(large)
    print(f"\n| MB | {FEW:,} examples | {examples:,} | more |\n|---|---|---|---|")
    for name, size in few.items():
        print(f"| {name} process | {size:.0f} | {many[name]:.0f} | {many[name] - size:.0f} |")


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--tars", type=int, default=100_000)
    parser.add_argument("--store", action="store_true", help="open from a store, too")
    parser.add_argument("--train", action="store_true", help="compare the memory of training, too")
    parser.add_argument("--open", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.open:
        kind, directory = args.open
        print(json.dumps(measure(SOURCES[kind](directory))))
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
        write_tars(directory / "tars", args.tars)
        in_a_process("manifest", directory / "tars")
        if args.store:
            from_a_store(directory / "tars")
        if args.train:
            compare_memory(directory / "few", directory / "tars", args.tars * IN_A_TAR)


if __name__ == "__main__":
    main()
