"""Processes of a run that die, hang or are slow, and runs that go on with another number of them.

Trains on two processes and kills or stops (SIGSTOP) either one: the other must end by itself with
exit code 144, within `LIMIT` seconds, and name it. A process that stands still for seconds again
and again must change nothing but the time. Then a run goes on with one process, and with four:
every step must have the examples that one undisturbed process has. Otherwise the exit code is 1.

    python scripts/campaigns/hosts_campaign.py [--rounds 3] [--seed 0] [--json figures.json]
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from kills import report  # noqa: E402
from train import processes  # noqa: E402
from train.processes import (  # noqa: E402
    LIGHT,
    ONE_LENGTH,
    numbers,
    saved_steps,
    steps_done,
    train,
    training,
)

from siglip2_jax.train.liveness import LOST  # noqa: E402

LIMIT = 60.0  # seconds
CHANGES = (*ONE_LENGTH, "checkpoints.every=10", "optim.schedule.warmup=1")
STEPS = 60
PAUSES, LONGEST_PAUSE = 4, 8.0  # of a slow process; seconds


def lose(workdir: Path, victim: int, number: int, after: int) -> float:
    """Sends a signal to one of two processes, after some steps.

    Returns:
      The seconds until the other one ended.

    Raises:
      SystemExit: it did not say why, or ended otherwise.
    """
    with training(LIGHT, workdir, *CHANGES, "stages.main.steps=100000", processes=2) as run:
        run.wait_for(lambda: steps_done(workdir) >= after)
        run.kill(number, victim)
        began = time.monotonic()
        run.popen[1 - victim].wait(processes.SECONDS)
        seconds = time.monotonic() - began
        code, text = run.popen[1 - victim].returncode, run.texts()[1 - victim]
    if code != LOST or f"siglip2: error: process {victim} of 2 is lost" not in text:
        raise SystemExit(f"process {1 - victim} ended with {code}:\n{text}")
    return seconds


def losses(directory: Path, rounds: int, rng: random.Random) -> dict[str, Any]:
    """Kills and stops either process; the longest that the other one took to end."""
    longest = {}
    for name, number in (("killed", signal.SIGKILL), ("stopped", signal.SIGSTOP)):
        for victim in (0, 1):
            seconds = []
            for i in range(rounds):
                workdir = directory / f"{name} {victim} {i}" / "run"
                workdir.parent.mkdir()
                seconds.append(lose(workdir, victim, number, rng.randint(1, 30)))
                print(f"{name} {victim}: {seconds[-1]:.1f} s", file=sys.stderr)
            longest[f"process {victim} {name}: longest seconds"] = round(max(seconds), 1)
    return longest


def slow(workdir: Path, rng: random.Random) -> dict[int, dict[str, float]]:
    """Trains to the end with a process that stands still again and again; its numbers."""
    with training(LIGHT, workdir, *CHANGES, f"stages.main.steps={STEPS}", processes=2) as run:
        for _ in range(PAUSES):
            done, victim = steps_done(workdir), rng.randrange(2)
            run.wait_for(lambda done=done: steps_done(workdir) > done + 3)
            run.kill(signal.SIGSTOP, victim)
            time.sleep(rng.uniform(1, LONGEST_PAUSE))
            run.kill(signal.SIGCONT, victim)
        ends = run.wait()
    if any(end.code for end in ends):
        raise SystemExit(f"a slow process ended the run: {ends}")
    return numbers(workdir)


def resized(workdir: Path, counts: Sequence[int]) -> dict[int, dict[str, float]]:
    """Trains to the end on one number of processes after the other; all numbers."""
    for i, count in enumerate(counts):
        until = STEPS * (i + 1) // len(counts)
        with training(
            LIGHT, workdir, *CHANGES, f"stages.main.steps={STEPS}", processes=count
        ) as run:
            if count != counts[-1]:
                run.wait_for(lambda until=until: steps_done(workdir) >= until)
                for index in range(count):
                    run.kill(signal.SIGKILL, index)
            ends = run.wait()
        expected = 0 if count == counts[-1] else -signal.SIGKILL
        if any(end.code != expected for end in ends):
            raise SystemExit(f"{count} processes ended otherwise: {ends}")
        print(f"{count} processes: {saved_steps(workdir)}", file=sys.stderr)
    return numbers(workdir)


def batches(found: dict[int, dict[str, float]]) -> dict[int, float]:
    """The digest of each step's examples."""
    return {step: line["digest/batch"] for step, line in found.items()}


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="of each kind of loss")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    processes.SECONDS = 3600  # where others use the machine too
    rng, figures = random.Random(args.seed), {}
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        (end,) = train(LIGHT, place / "alone", *CHANGES, f"stages.main.steps={STEPS}")
        if end.code:
            raise SystemExit(end.text)
        expected = batches(numbers(place / "alone"))
        for name, found in (
            ("with a slow process", slow(place / "slow", rng)),
            ("on 2, 1 and 4 processes", resized(place / "resized", (2, 1, 4))),
        ):
            differing = sum(expected.get(step) != x for step, x in batches(found).items())
            figures[f"steps {name}"] = len(found)
            figures[f"differing batches {name}"] = differing + len(expected.keys() - found.keys())
        figures |= losses(place, args.rounds, rng)
        figures["losses"] = 4 * args.rounds
    report(figures, args.json)
    late = [x for name, x in figures.items() if name.endswith("seconds") and x > LIMIT]
    if late or any(x for name, x in figures.items() if name.startswith("differing")):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
