"""`siglip2 embed --out DIR` in two processes, killed again and again, against an undisturbed run.

Writes tars of small images, one in twenty of them broken, and embeds them with a tiny model in two
processes, each with its share. One of them is killed with SIGKILL at a random moment and started
again by the same command, until both have ended by themselves; so again, from the beginning, until
there were as many kills as asked for. The rows must be those of one undisturbed process, bit for
bit, and nothing else may be left; otherwise the exit code is 1. Needs the extra `search`, and the
tests beside this directory.

    python scripts/campaigns/embed_campaign.py [--kills 20] [--seed 0] [--json figures.json]
"""

from __future__ import annotations

import argparse
import io
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pyarrow import parquet

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from kills import environment, has_ended, report  # noqa: E402

from siglip2_jax.testing import tiny_embedder  # noqa: E402

TARS, IMAGES = 60, (20, 60)  # fewest and most images of a tar
BROKEN = 0.05
SHARES = 2
WORKERS = "0", "1"  # of each share


def write_tars(directory: Path, rng: np.random.Generator) -> int:
    """Writes tars of noise; gives the number of images."""
    directory.mkdir()
    total = 0
    for number in range(TARS):
        with tarfile.open(directory / f"{number:03d}.tar", "w") as tar:
            for key in range(rng.integers(*IMAGES)):
                data = io.BytesIO()
                pixels = rng.integers(0, 256, (*rng.integers(16, 200, 2), 3), np.uint8)
                Image.fromarray(pixels).save(data, "JPEG")
                content = data.getvalue()
                content = b"broken" if rng.random() < BROKEN else content
                member = tarfile.TarInfo(f"{key:05d}.jpg")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
                total += 1
    return total


class Job:
    """Processes that embed into one directory."""

    def __init__(self, directory: Path, out: Path) -> None:
        self._directory, self.out = directory, out

    def start(self, share: int, shares: int) -> subprocess.Popen:
        """Starts the command for a share."""
        command = [sys.executable, "-m", "siglip2_jax", "embed", str(self._directory / "model")]
        command += ["--images", str(self._directory / "tars"), "--out", str(self.out)]
        command += ["--shard", f"{share}/{shares}", "--workers", WORKERS[share]]
        command += ["--max-num-patches", "64", "--batch-size", "8"]
        with open(self.out.with_suffix(f".{share}.log"), "ab") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, env=environment()
            )

    def end(self, share: int, process: subprocess.Popen) -> None:
        """Waits for a process to end by itself.

        Raises:
          SystemExit: it failed.
        """
        if code := process.wait():
            text = self.out.with_suffix(f".{share}.log").read_text()
            raise SystemExit(f"share {share} ended with {code}:\n{text}")

    def files(self) -> int:
        """Number of shards that are there."""
        return len(list(self.out.glob("shards/*.parquet")))

    def rows(self) -> list[tuple[Any, ...]]:
        """Merges the shards, and reads all rows; embeddings as the bytes they are."""
        command = [sys.executable, "-m", "siglip2_jax", "embed", "--merge", "--out", str(self.out)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment())
        found = []
        for path in sorted(self.out.glob("shards/*.parquet")):
            table = parquet.read_table(path)
            embeddings = table["embedding"].to_pylist()
            bits = [x and np.array(x, np.float16).tobytes() for x in embeddings]
            others = table.drop_columns(["embedding"]).to_pylist()
            found += [(path.name, *row.values(), x) for row, x in zip(others, bits, strict=True)]
        return found


def wait_for_a_moment(job: Job, seconds: float, rng: random.Random) -> None:
    """Waits until some files more are written, or for some of the seconds of a start."""
    end = time.monotonic() + seconds
    if rng.random() < 0.5:
        time.sleep(rng.uniform(0, seconds))
        return
    files = job.files() + rng.randint(1, 12)
    while job.files() < files and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.2))


def disturbed(job: Job, kills: int, seconds: float, rng: random.Random) -> tuple[list[int], int]:
    """Embeds with at most so many kills, at random moments.

    Returns:
      The number of files at each kill, and how often processes were left behind.
    """
    moments, left_behind = [], 0
    running = {share: job.start(share, SHARES) for share in range(SHARES)}
    while len(moments) < kills:
        wait_for_a_moment(job, seconds, rng)
        alive = [share for share, process in running.items() if process.poll() is None]
        if not alive or job.files() == TARS:
            break
        share = rng.choice(alive)
        process = running[share]
        process.kill()
        if process.wait() != -signal.SIGKILL:
            continue  # it had ended meanwhile
        moments.append(job.files())
        left_behind += not has_ended(process.pid)
        running[share] = job.start(share, SHARES)
        print(f"killed share {share} with {moments[-1]} of {TARS} files", file=sys.stderr)
    for share, process in running.items():
        job.end(share, process)
    return moments, left_behind


def campaign(directory: Path, kills: int, seed: int) -> dict[str, Any]:
    """Runs all, and compares."""
    rng, start = random.Random(seed), time.monotonic()
    images = write_tars(directory / "tars", np.random.default_rng(seed))
    tiny_embedder().save(directory / "model", "hf")
    quiet = Job(directory, directory / "quiet")
    began = time.monotonic()
    quiet.end(0, quiet.start(0, 1))
    seconds = time.monotonic() - began
    expected = quiet.rows()
    moments: list[list[int]] = []
    differing = left_behind = leftovers = 0
    while (done := sum(map(len, moments))) < kills:
        job = Job(directory, directory / f"disturbed {len(moments)}")
        killed, behind = disturbed(job, kills - done, seconds, rng)
        moments.append(killed)
        rows = job.rows()
        differing += len(set(rows) ^ set(expected)) + abs(len(rows) - len(expected))
        left_behind += behind
        leftovers += sum(not path.name.endswith(".parquet") for path in job.out.glob("shards/*"))
    return {
        "kills": sum(map(len, moments)),
        "files_at_each_kill": moments,
        "images": images,
        "rows": len(expected),
        "broken": sum(row[-1] is None for row in expected),
        "differing_rows": differing,
        "files_left": leftovers,
        "processes_left_behind": left_behind,
        "seconds": round(time.monotonic() - start),
    }


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        figures = campaign(Path(directory), args.kills, args.seed)
    report(figures, args.json)
    wrong = ("differing_rows", "files_left", "processes_left_behind")
    if any(figures[name] for name in wrong) or figures["rows"] != figures["images"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
