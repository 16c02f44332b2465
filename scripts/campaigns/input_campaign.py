"""A run that reads from a faulty store, killed again and again, against a quiet one from a disk.

Packs made-up images as tars and trains on them from `gs://`, on a server on this machine whose
answers are late, refused, cut or never come. The run is killed with SIGKILL at random moments and
started again by the same command. Then it trains from the local tars, undisturbed. All numbers of
all steps must be equal, bit for bit, and no example may be lost or doubled in an epoch; otherwise
the exit code is 1. Needs the dependency group `remote`, and the tests beside this directory.

    python scripts/campaigns/input_campaign.py [--kills 20] [--seed 0] [--json figures.json]
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

TESTS = Path(__file__).parents[2] / "tests"
sys.path.insert(0, str(TESTS))

from data.samples import example  # noqa: E402
from kills import has_ended, report  # noqa: E402
from stores import GoogleStore, running  # noqa: E402
from train.processes import CONFIGS, metrics, steps_done, train, training  # noqa: E402

from siglip2_jax.config import load_config  # noqa: E402
from siglip2_jax.data.blocks.order import BlockOrder  # noqa: E402
from siglip2_jax.data.blocks.shuffle import BlockShuffle  # noqa: E402
from siglip2_jax.data.sources import Memory  # noqa: E402
from siglip2_jax.data.tools import pack as pack_module  # noqa: E402

CONFIG = CONFIGS / "numbered.py"
# Neither blocks nor shards come out even.
EXAMPLES, SHARD, BLOCK = 2045, 300, 16
# Of 1,000 requests. A stall costs the 30 seconds after which the client gives up.
FAULTS = {"503": 40, "429": 20, "reset": 40, "cut": 40, "stall": 2}
LATENCY = 0.02
SECONDS_OF_A_START = 12.0  # during which some of the kills come


def write_tars(directory: Path) -> None:
    """The examples in tars with a manifest, in small blocks."""
    with mock.patch.object(pack_module, "BLOCK_SIZE", BLOCK):
        source = Memory(tuple(example(i) for i in range(EXAMPLES)))
        pack_module.pack(source, directory, kind="tar", shard_size=SHARD)


def disturbed(
    workdir: Path, changes: list[str], steps: int, kills: int, rng: random.Random
) -> tuple[list[int], int]:
    """Trains with kills.

    Returns:
      The step that had been logged last at each kill, and how often processes were left behind.
    """
    moments, left_behind = [], 0
    for target in sorted(rng.randrange(steps) for _ in range(kills)):
        with training(CONFIG, workdir, *changes) as run:
            if steps_done(workdir) < target:
                run.wait_for(lambda target=target: steps_done(workdir) >= target)
                time.sleep(rng.uniform(0, 0.3))
            else:
                time.sleep(rng.uniform(0, SECONDS_OF_A_START))
            run.kill(signal.SIGKILL)
            (end,) = run.wait()
            if end.code != -signal.SIGKILL:
                raise SystemExit(f"it ended by itself, with {end.code}:\n{end.text}")
            moments.append(steps_done(workdir))
            left_behind += not has_ended(run.popen[0].pid)
        print(f"killed after step {moments[-1]}", file=sys.stderr)
    finish(workdir, changes)
    return moments, left_behind


def finish(workdir: Path, changes: list[str]) -> None:
    """Trains to the end."""
    (end,) = train(CONFIG, workdir, *changes)
    if end.code:
        raise SystemExit(f"training failed with {end.code}:\n{end.text}")


def numbers(workdir: Path) -> dict[int, dict[str, float]]:
    """What each step has computed; a step with two lines is an error."""
    lines = metrics(workdir)
    found = {
        line["step"]: {
            name: x
            for name, x in line.items()
            if not name.startswith(("time", "examples_per_s", "data_wait", "data/"))
        }
        for line in lines
    }
    if len(found) != len(lines):
        raise SystemExit(f"{workdir}/metrics.jsonl: a step has two lines")
    return found


def order_of_run() -> tuple[BlockOrder, int]:
    """The order of the config's examples, and its batch size."""
    (stage,) = load_config(CONFIG).resolved
    shuffle = stage.data.shuffle
    assert isinstance(shuffle, BlockShuffle)
    lanes, window = shuffle.resolve((stage.batch_size,))
    return BlockOrder(EXAMPLES, BLOCK, lanes, window, stage.data_seed), stage.batch_size


def epochs(found: dict[int, dict[str, float]]) -> dict[str, int]:
    """Counts of what was trained on in each epoch, by the order's arithmetic.

    Examples that are missing in an epoch are counted where all of its places were trained on.
    """
    order, batch = order_of_run()
    each, whole = batch // order.lanes, order.blocks * order.size
    seen: dict[int, list[int]] = collections.defaultdict(list)
    for step, line in found.items():
        for row in range(batch):
            lane, key = row // each, (step - 1) * each + row % each
            epoch, _ = order._block(lane, order._shuffled(lane, key) // order.size)
            seen[epoch].append(int(line[f"ids/{row:02}"]))
    complete = [ids for ids in seen.values() if len(ids) == whole]
    return {
        "whole_epochs": len(complete),
        "examples_an_epoch": whole,
        "lost": sum(whole - len(set(ids)) for ids in complete),
        "doubled": sum(len(ids) - len(set(ids)) for ids in seen.values()),
    }


def fault(rng: random.Random, counted: collections.Counter) -> str | None:
    """A fault or none, for a request."""
    kinds = [None, *FAULTS]
    (kind,) = rng.choices(kinds, [1000 - sum(FAULTS.values()), *FAULTS.values()])
    counted[kind or "none"] += 1
    return kind


def campaign(directory: Path, kills: int, steps: int, seed: int) -> dict[str, Any]:
    """Runs both, and compares them."""
    rng, counted = random.Random(seed), collections.Counter()
    tars, start = directory / "packed", time.monotonic()
    write_tars(tars)
    (directory / "store" / "bucket").mkdir(parents=True)
    common = [f"stages.main.steps={steps}"]
    with running(GoogleStore(directory / "store")) as store:
        for path in tars.rglob("*"):
            if path.is_file():
                store.put(f"packed/{path.relative_to(tars)}", path.read_bytes())
        os.environ |= store.variables()
        store.latency, faults = LATENCY, random.Random(seed + 1)
        store.fault = lambda: fault(faults, counted)
        changes = ["data.source.pattern=gs://bucket/packed", *common]
        moments, left = disturbed(directory / "remote", changes, steps, kills, rng)
    finish(directory / "local", [f"data.source.pattern={tars}", *common])
    found, expected = numbers(directory / "remote"), numbers(directory / "local")
    differing = [step for step in expected if found.get(step) != expected[step]]
    last = metrics(directory / "remote")[-1]
    return {
        "kills": kills,
        "killed_after_steps": moments,
        "processes_left_behind": left,
        "steps": len(expected),
        "numbers_a_step": len(expected[1]),
        "differing_steps": len(differing) + len(found.keys() - expected.keys()),
        **epochs(found),
        "bad_examples": last["bad_examples"],
        "requests": dict(counted),
        "seconds": round(time.monotonic() - start),
    }


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        figures = campaign(Path(directory), args.kills, args.steps, args.seed)
    report(figures, args.json)
    wrong = ("differing_steps", "lost", "doubled", "bad_examples", "processes_left_behind")
    if any(figures[name] for name in wrong) or not figures["whole_epochs"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
