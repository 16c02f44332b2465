"""Files that are nearly right, by mutation of valid ones: all are read, or refused in one sentence.

Kinds are images, tars, captions, configs, checkpoints and tokenizers. Cases run one after the other
in a process that is watched: one that ends by a signal, takes longer than `SECONDS`, or raises
anything but a `ValueError` or `OSError` of the package with a sentence (or a list) is a violation,
and so is memory beyond the kind's bound. Case n of a seed is always the same, and `--first n
--count 1` runs it alone. Exits with 1 if there was a violation.

    python scripts/campaigns/fuzz_inputs.py --kind images [--count 10000] [--seed 0] [--json FILE]
"""

from __future__ import annotations

import argparse
import collections
import json
import logging
import multiprocessing
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from fuzz_targets import KINDS  # noqa: E402

import siglip2_jax  # noqa: E402

SECONDS = 60.0  # after which a case hangs, where others use the machine too
SECONDS_TO_START = 600.0
LONGEST = 8000  # characters of a sentence, which may repeat a name of thousands
WARM_UP = 200  # cases until memory is compared
PACKAGE = str(Path(siglip2_jax.__file__).parent)


def outcome_of(target: Any, rng: random.Random) -> tuple[str, str | None]:
    """Runs a case; gives "read" or "refused", and a phrase for the violation if it is one."""
    try:
        target.read(rng)
    except (ValueError, OSError) as error:
        return "refused", problem_of(error)
    except Exception as error:
        return "refused", f"{type(error).__name__}: {str(error)[:200]} at {place_of(error)}"
    return "read", None


def problem_of(error: Exception) -> str | None:
    """Phrase for an error that is no sentence of the package."""
    text = str(error)
    if not place_of(error).startswith(PACKAGE):
        return f"raised elsewhere: {type(error).__name__}: {text[:200]} at {place_of(error)}"
    problems = getattr(error, "problems", ())  # a list of them has a line for each
    if text.count("\n") > len(problems) or not 10 < len(text) <= LONGEST:
        return f"no sentence: {type(error).__name__}: {text[:200]!r} at {place_of(error)}"
    return None


def place_of(error: Exception) -> str:
    """File and line where an error was raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}:{frame.lineno}"


def peak_mib() -> float:
    """The largest size of this process so far."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / (2**20 if sys.platform == "darwin" else 2**10)


def work(kind: str, seed: int, first: int, stop: int, channel: Connection) -> None:
    """Runs cases, and reports each: number, outcome, violation, milliseconds, memory."""
    logging.disable()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        target = KINDS[kind](Path(folder))
        channel.send(None)
        for number in range(first, stop):
            channel.send(number)
            start = time.monotonic()
            outcome, problem = outcome_of(target, random.Random(f"{kind} {seed} {number}"))
            seconds = time.monotonic() - start
            channel.send((outcome, problem, 1000 * seconds, peak_mib()))


class Fuzz:
    """Cases of one kind, and what came of them.

    Attributes:
      counts: of cases by outcome.
      violations: a line for each, up to some.
      slowest: milliseconds and number of the slowest case.
      growth: MiB by which the peak of memory rose after the first cases, the most in any process.
    """

    def __init__(self, kind: str, seed: int) -> None:
        self.kind, self.seed = kind, seed
        self.counts: collections.Counter[str] = collections.Counter()
        self.violations: list[str] = []
        self.slowest = (0.0, -1)
        self.growth = 0.0
        self._memory: list[float] = []

    def run(self, first: int, stop: int) -> None:
        """Runs all cases; where a process is lost, the next one goes on after the case."""
        context = multiprocessing.get_context("spawn")
        while first < stop:
            here, there = context.Pipe()
            arguments = (self.kind, self.seed, first, stop, there)
            process = context.Process(target=work, args=arguments)
            process.start()
            there.close()
            first = self._follow(here, first)
            process.kill()
            process.join()
            self._memory.clear()

    def _follow(self, channel: Connection, number: int) -> int:
        """Takes reports until the process ends or hangs; gives the case to go on with."""
        began = False
        try:
            channel.poll(SECONDS_TO_START)
            channel.recv()  # the valid files are there
            while channel.poll(SECONDS):
                report = channel.recv()
                if isinstance(report, int):
                    number, began = report, True
                else:
                    self._take(number, *report)
                    number, began = number + 1, False
            self._violate(number, "hangs", f"took more than {SECONDS:g} s")
        except EOFError:
            if began:
                self._violate(number, "crashed", "ended the process")
        return number + began

    def _take(
        self, number: int, outcome: str, problem: str | None, milliseconds: float, mib: float
    ) -> None:
        self.counts[outcome] += 1
        self.slowest = max(self.slowest, (milliseconds, number))
        self._memory.append(mib)
        if problem:
            self._violate(number, "badly refused", problem)
        if len(self._memory) > WARM_UP:
            growth = mib - self._memory[WARM_UP]
            if growth > KINDS[self.kind].bound >= self.growth:
                self._violate(number, "too much memory", f"{growth:.0f} MiB more")
            self.growth = max(self.growth, growth)

    def _violate(self, number: int, name: str, text: str) -> None:
        self.counts[name] += 1
        print(f"{self.kind} {number}: {name}: {text}", file=sys.stderr, flush=True)
        if len(self.violations) < 50:
            self.violations.append(f"{number}: {name}: {text}")

    def summary(self) -> dict[str, Any]:
        """What came of the cases."""
        return {
            "kind": self.kind,
            "seed": self.seed,
            "cases": self.counts["read"] + self.counts["refused"],
            **self.counts,
            "slowest_ms": round(self.slowest[0], 1),
            "slowest_case": self.slowest[1],
            "MiB_more": round(self.growth, 1),
            "MiB_bound": KINDS[self.kind].bound,
            "violations": self.violations,
        }


def main() -> int:
    """Prints the summary; returns 1 if there was a violation."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the summary there too")
    args = parser.parse_args()
    fuzz, start = Fuzz(args.kind, args.seed), time.monotonic()
    fuzz.run(args.first, args.first + args.count)
    summary = fuzz.summary() | {"seconds": round(time.monotonic() - start, 1)}
    text = json.dumps(summary, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")
    return int(bool(fuzz.violations))


if __name__ == "__main__":
    sys.exit(main())
