"""Training killed again and again, with everything on, against runs that nobody disturbs.

Trains the config with all losses, a moving average and a curated second stage on one process, and a
smaller one with an average on two processes that share a model. Each is killed with
SIGKILL at random moments and started again by the same command: while it starts, between steps,
while a checkpoint is half written, and while an old one is half deleted. Of two processes one is
killed, or both are; where one is left, it must end by itself and name the other. All numbers of all
steps, among them digests of the batches, and all arrays of the last checkpoint must be those of the
undisturbed run, bit for bit, and nothing half-written may be left; otherwise the exit code is 1.

    python scripts/campaigns/train_campaign.py [--kills 60 40] [--minutes M] [--seed 0] [--json F]
"""

from __future__ import annotations

import argparse
import collections
import math
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from kills import report  # noqa: E402
from train import processes  # noqa: E402
from train.processes import (  # noqa: E402
    CONFIGS,
    ONE_LENGTH,
    Processes,
    metrics,
    numbers,
    saved,
    steps_done,
    training,
)

from siglip2_jax.train.liveness import LOST  # noqa: E402

OFTEN = ("checkpoints.every=2", "checkpoints.keep_last=2")


SECONDS_OF_A_START = 20.0  # during which some of the kills come


class Job(NamedTuple):
    """A run: its config, changes to it, how many processes train, and steps to its end."""

    config: Path
    changes: tuple[str, ...]
    processes: int
    steps: int

    def start(self, workdir: Path):
        """Starts training, as a context."""
        return training(self.config, workdir, *self.changes, processes=self.processes)

    def train(self, workdir: Path) -> None:
        """Trains to the end.

        Raises:
          SystemExit: it failed.
        """
        with self.start(workdir) as run:
            ends = run.wait()
        if any(end.code for end in ends):
            raise SystemExit(f"training failed: {ends}")


EVERYTHING = Job(
    CONFIGS / "everything.py",
    ("stages.main.steps=24", "stages.curated.steps=16", *OFTEN),
    processes=1,
    steps=40,
)
SHARED = Job(
    CONFIGS / "small.py",
    (*ONE_LENGTH, "stages.main.steps=60", "optim.ema=0.9", "compute.scan=False", *OFTEN),
    processes=2,
    steps=60,
)


def folder(workdir: Path) -> dict[str, int]:
    """Names in the directory of checkpoints, and how many entries each has."""
    try:
        return {x.name: len(os.listdir(x)) for x in (workdir / "checkpoints").iterdir()}
    except OSError:  # it is not there yet, or one of them is gone meanwhile
        return {}


def is_writing(workdir: Path) -> bool:
    """True while a checkpoint is half written."""
    return any("tmp" in name for name in folder(workdir))


def is_deleting(workdir: Path) -> bool:
    """True while a finished checkpoint has lost some of its entries."""
    whole = [count for name, count in folder(workdir).items() if name.isdecimal()]
    return len(whole) > 1 and min(whole) < max(whole)


def wait_for_a_moment(job: Job, workdir: Path, run: Processes, rng: random.Random) -> str:
    """Waits for a moment to kill the run; gives its kind."""
    kind = rng.choice(["starting", "between steps", "between steps", "writing", "deleting"])
    done = steps_done(workdir)
    further = rng.randrange(1, max(2, job.steps // 4))
    conditions: dict[str, Callable[[], bool]] = {
        "between steps": lambda: steps_done(workdir) > done + further,
        "writing": lambda: steps_done(workdir) > done + 1 and is_writing(workdir),
        "deleting": lambda: steps_done(workdir) > done + 1 and is_deleting(workdir),
    }
    if kind == "starting":
        time.sleep(rng.uniform(0, SECONDS_OF_A_START))
        return kind
    run.wait_for(conditions[kind])
    if kind == "between steps":
        time.sleep(rng.uniform(0, 0.3))
    return kind


def kill(run: Processes, rng: random.Random) -> tuple[bool, float | None]:
    """Kills the run, all of it or one process.

    Returns:
      True unless it had ended before; seconds until the process that was left ended, if one was.

    Raises:
      SystemExit: a process ended otherwise than it should.
    """
    count = len(run.popen)
    if any(process.poll() is not None for process in run.popen):
        if any(end.code for end in run.wait()):
            raise SystemExit(f"it ended by itself: {run.wait()}")
        return False, None
    victims = [rng.randrange(count)] if count > 1 and rng.random() < 0.25 else range(count)
    for victim in victims:
        run.kill(signal.SIGKILL, victim)
    began = time.monotonic()
    for index, end in enumerate(run.wait()):
        expected = -signal.SIGKILL if index in victims else LOST
        named = f"process {victims[0]} of {count} is lost" in end.text
        named = named or f"of {count} has waited at" in end.text  # it had not joined
        if end.code != expected or (expected == LOST and not named):
            raise SystemExit(f"process {index} ended with {end.code}, not {expected}:\n{end.text}")
    return True, time.monotonic() - began if len(victims) < count else None


def differing(workdir: Path, expected: dict[int, dict[str, float]]) -> int:
    """Number of the steps logged so far whose numbers are others."""
    return sum(expected.get(step) != line for step, line in numbers(workdir).items())


def differing_arrays(job: Job, workdir: Path, expected: Path) -> int:
    """Number of arrays of the last checkpoint that are others, bit by bit."""
    count = 0
    for tree in ("params", "optimizer", "average"):
        a, b = (saved(path, job.steps, tree) for path in (workdir, expected))
        names = a.keys() | b.keys()
        count += sum(
            name not in a or name not in b or a[name].tobytes() != b[name].tobytes()
            for name in names
        )
    return count


def disturbed(
    job: Job, workdir: Path, reference: Path, kills: int, end: float, rng: random.Random
) -> collections.Counter[str]:
    """Trains in one workdir to its end, with at most so many kills; counts what came of them."""
    expected, counts = numbers(reference), collections.Counter[str]()
    while counts["kills"] < kills and time.monotonic() < end and steps_done(workdir) < job.steps:
        with job.start(workdir) as run:
            kind = wait_for_a_moment(job, workdir, run, rng)
            killed, seconds = kill(run, rng)
        if not killed:
            break
        counts["kills"] += 1
        counts[f"killed {kind}"] += 1
        counts["half-written at a kill"] += is_writing(workdir)
        counts["half-deleted at a kill"] += is_deleting(workdir)
        if seconds is not None:
            counts["left alone"] += 1
            counts["longest seconds alone"] = max(counts["longest seconds alone"], round(seconds))
        counts["differing steps"] += differing(workdir, expected)
        print(f"{job.processes}: {kind}, after step {steps_done(workdir)}", file=sys.stderr)
    job.train(workdir)
    counts["differing steps"] += differing(workdir, expected)
    counts["missing steps"] += len(expected.keys() - numbers(workdir).keys())
    counts["differing arrays"] += differing_arrays(job, workdir, reference)
    counts["leftovers"] += len(folder(workdir).keys() ^ folder(reference).keys())
    counts["runs"] += 1
    return counts


def campaign(
    job: Job, directory: Path, kills: int, minutes: float, rng: random.Random
) -> dict[str, Any]:
    """Runs until there were so many kills, or so many minutes have passed."""
    start, total = time.monotonic(), collections.Counter[str]()
    reference = directory / "undisturbed"
    reference.parent.mkdir(parents=True)
    job.train(reference)
    end = start + 60 * minutes
    while total["kills"] < kills and time.monotonic() < end:
        workdir = directory / f"run {total['runs']}"
        counts = disturbed(job, workdir, reference, kills - total["kills"], end, rng)
        longest = max(total["longest seconds alone"], counts["longest seconds alone"])
        total.update(counts)
        total["longest seconds alone"] = longest
    values = len(metrics(reference)[0])
    arrays = sum(len(saved(reference, job.steps, x)) for x in ("params", "optimizer", "average"))
    more = {"steps of a run": job.steps, "numbers of a step": values, "arrays": arrays}
    return {**more, **total, "seconds": round(time.monotonic() - start)}


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    help_kills = "of one process, and of two"
    parser.add_argument("--kills", type=int, nargs=2, default=(60, 40), help=help_kills)
    parser.add_argument("--minutes", type=float, default=math.inf, help="end after so many, each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    processes.SECONDS = 3600
    figures = {}
    with tempfile.TemporaryDirectory() as directory:
        for job, kills in zip((EVERYTHING, SHARED), args.kills, strict=True):
            if kills:
                place = Path(directory) / str(job.processes)
                found = campaign(job, place, kills, args.minutes, random.Random(args.seed))
                figures |= {f"{job.processes}: {name}": value for name, value in found.items()}
                report(figures, args.json)
    wrong = ("differing steps", "missing steps", "differing arrays", "leftovers")
    if any(value for name, value in figures.items() if name.endswith(wrong)):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
