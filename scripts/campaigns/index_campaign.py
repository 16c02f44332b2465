"""`siglip2 index` killed again and again, with others at it, against an undisturbed run.

Writes folders of small images, some of them broken and some twice, and indexes them with a tiny
model. The process is killed with SIGKILL at a random moment and started again by the same command;
meanwhile a second process tries to index into the same database, and is refused or takes over. Half
of the time --prune takes part, and images go and move between two starts. In the end the rows must
be those of one undisturbed run, bit for bit; otherwise the exit code is 1. Needs the extra
`search`, and the tests beside this directory.

    python scripts/campaigns/index_campaign.py [--kills 20] [--seed 0] [--json figures.json]
"""

from __future__ import annotations

import argparse
import collections
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from kills import environment, report  # noqa: E402

from siglip2_jax.search.database import Database  # noqa: E402
from siglip2_jax.testing import tiny_embedder  # noqa: E402

BROKEN, TWICE = 0.05, 0.1
SECONDS_OF_A_START = 12.0
# Rows of a commit: few, so that most kills come between commits or in one.
PATCH = (
    "import siglip2_jax.search.writer as w; w.ROWS_PER_COMMIT = {}; w.COMMITS_PER_COMPACTION = 5"
)
MAIN = "; import sys; from siglip2_jax.cli import main; sys.exit(main(sys.argv[1:]))"
REFUSED = "is being written by process"


def write_images(directory: Path, images: int, rng: np.random.Generator) -> None:
    """Writes images of noise."""
    directory.mkdir()
    for number in range(images):
        path = directory / f"{number:05}.png"
        if number and rng.random() < TWICE:
            path.write_bytes((directory / f"{rng.integers(number):05}.png").read_bytes())
        elif rng.random() < BROKEN:
            path.write_bytes(b"broken")
        else:
            pixels = rng.integers(0, 256, (*rng.integers(8, 100, 2), 3), np.uint8)
            Image.fromarray(pixels).save(path)


def start(directory: Path, db: Path, log: Path, rows: int = 8) -> subprocess.Popen:
    """Starts the command."""
    command = [sys.executable, "-c", PATCH.format(rows) + MAIN, "index", str(db)]
    command += [str(directory / "model"), str(directory / "images"), "--prune"]
    command += ["--max-num-patches", "64", "--batch-size", "8", "--workers", "0"]
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment())


def rows_of(db: Path) -> dict[str, tuple[Any, ...]]:
    """All rows by their contents; two of one content are an error."""
    rows = Database.open(db).table.to_arrow().to_pylist()
    found = {
        row["content"]: (row["id"], np.array(row["embedding"], np.float16).tobytes(), row["width"])
        for row in rows
    }
    if len(found) != len(rows):
        raise SystemExit(f"{len(rows) - len(found)} rows of {db} are doubled")
    return found


def count(db: Path) -> int:
    """Rows so far."""
    try:
        return Database.open(db).table.count_rows()
    except ValueError:
        return 0


def finish(directory: Path, db: Path, rows: int = 8) -> float:
    """Indexes to the end; gives the seconds."""
    log, began = db.with_suffix(".log"), time.monotonic()
    if code := start(directory, db, log, rows).wait():
        raise SystemExit(f"siglip2 index ended with {code}:\n{log.read_text()[-3000:]}")
    return time.monotonic() - began


def campaign(directory: Path, images: int, kills: int, seed: int) -> dict[str, Any]:
    """Runs both, and compares them."""
    rng = random.Random(seed)
    write_images(directory / "images", images, np.random.default_rng(seed))
    tiny_embedder().save(directory / "model", "hf")
    seconds = finish(directory, directory / "undisturbed.db", rows=8192)
    expected = rows_of(directory / "undisturbed.db")
    db, log, moments = directory / "disturbed.db", directory / "disturbed.log", []
    ends: collections.Counter[str] = collections.Counter()
    for target in sorted(rng.randrange(len(expected)) for _ in range(kills)):
        running = [start(directory, db, log)]
        time.sleep(rng.uniform(0, 1))
        running.append(start(directory, db, log))
        end = time.monotonic() + 2 * max(seconds, SECONDS_OF_A_START)
        while count(db) < target and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(rng.uniform(0, SECONDS_OF_A_START if rng.random() < 0.2 else 0.3))
        victim = rng.choice([x for x in running if x.poll() is None] or running)
        victim.kill()
        time.sleep(rng.uniform(0, 0.5))
        for process in running:
            if process is not victim:
                process.kill()
            code = process.wait()
            ends[{0: "ended", 2: "refused", -9: "killed"}.get(code, f"code {code}")] += 1
        moments.append(count(db))
        print(f"killed at {moments[-1]} of {len(expected)} rows", file=sys.stderr)
    finish(directory, db)
    found = rows_of(db)
    text = log.read_text()
    return {
        "kills": kills,
        "killed_at_rows": moments,
        "ends": dict(ends),
        "refused_by_the_lock": text.count(REFUSED),
        "rows": len(expected),
        "missing": len(expected.keys() - found.keys()),
        "too_many": len(found.keys() - expected.keys()),
        "differing": sum(found[x] != expected[x] for x in expected.keys() & found.keys()),
        "other_errors": sum("error: " in line and REFUSED not in line for line in text.splitlines())
        + sum("Traceback" in line for line in text.splitlines()),
    }


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        figures = campaign(Path(directory), args.images, args.kills, args.seed)
    report(figures, args.json)
    if any(figures[name] for name in ("missing", "too_many", "differing", "other_errors")):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
