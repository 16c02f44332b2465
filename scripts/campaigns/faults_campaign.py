"""Damaged checkpoints, full and unwritable disks, and data that goes away, against training.

`--part checkpoints` changes, cuts or removes a random file of the newest of two checkpoints: a run
must resume from it with all arrays as they were saved, or name it and resume from the other one.
`--part disk` trains on a disk that fills up after a random share of what a run writes, or becomes
read-only: one sentence, exit code 2, whole checkpoints alone; and with room again the run must end
with the numbers of an undisturbed one. It needs root, to mount. `--part data` deletes, cuts or
overwrites a shard in mid-run, or lets reading hang: the run must save and say why, or count bad
examples, and go on with the same batches once the shard is back. Exits with 1 otherwise.

    python scripts/campaigns/faults_campaign.py --part disk [--rounds 20] [--seed 0] [--json FILE]
"""

from __future__ import annotations

import argparse
import collections
import logging
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "tests")]

import jax  # noqa: E402
import numpy as np  # noqa: E402
from data.samples import example  # noqa: E402
from etils import epath  # noqa: E402
from kills import report  # noqa: E402
from mutations import change_bytes  # noqa: E402
from train import processes, runs  # noqa: E402
from train.processes import (  # noqa: E402
    CONFIGS,
    LIGHT,
    ONE_LENGTH,
    Ended,
    metrics,
    saved_steps,
    steps_done,
    train,
    training,
)

from siglip2_jax.checkpoints.damage import find_damage, read_record  # noqa: E402
from siglip2_jax.data.sources import Memory  # noqa: E402
from siglip2_jax.data.tools import pack as pack_module  # noqa: E402
from siglip2_jax.sharding import make_mesh  # noqa: E402
from siglip2_jax.train.run import Run  # noqa: E402
from siglip2_jax.train.start import abstract_state  # noqa: E402

Counts = collections.Counter[str]
WRONG = "wrong: "  # begins what must not come
OLDER, NEWEST = 4, 10


def checkpoints(directory: Path, rounds: int, rng: random.Random) -> Counts:
    """Damages the newest checkpoint, and resumes."""
    config, counts = runs.run(runs.stage(batch_size=16)), Counts()
    states = runs.save_run(directory / "saved", config, [OLDER, NEWEST], make_mesh(1))
    expected = {step: runs.numbers(state) for step, state in states.items()}
    saved = directory / "saved" / "checkpoints"
    records = {step: read_record(epath.Path(saved / str(step))) for step in states}
    for number in range(rounds):
        workdir = shutil.copytree(directory / "saved", directory / "run")
        newest = workdir / "checkpoints" / str(NEWEST)
        file = rng.choice(sorted(x for x in newest.rglob("*") if x.is_file()))
        kind = rng.choice(("removed", "cut", "changed", "changed"))
        content = file.read_bytes()
        if kind == "removed":
            file.unlink()
        elif kind == "cut":
            file.write_bytes(content[: rng.randrange(len(content) + 1)])
        else:
            file.write_bytes(change_bytes(content, rng))
        run = Run(config, epath.Path(workdir), {})
        like = abstract_state(runs.Sevens(config.resolved[0]), run.mesh)
        found = runs.numbers(run.checkpoints.restore(run.saved, like))
        run.close()
        same = run.checkpoints.record(run.saved) == records[run.saved]
        same = same and all(np.array_equal(found[k], x) for k, x in expected[run.saved].items())
        aside = (workdir / "checkpoints" / f"{NEWEST}.damaged").is_dir()
        right = same and aside == (run.saved == OLDER)
        outcome = "harmless" if run.saved == NEWEST else "named and passed by"
        counts[f"{kind}: {outcome}" if right else f"{WRONG}{number}: {file.name} {kind}"] += 1
        shutil.rmtree(workdir)
    return counts


CHANGES = (*ONE_LENGTH, "optim.schedule.warmup=1", "checkpoints.every=5")
STEPS = 40


def refusal_of(end: Ended, workdir: Path) -> str | None:
    """What is wrong with how a run that cannot go on has ended; None if nothing is."""
    sentences = [x for x in end.text.splitlines() if x.startswith("siglip2: error: ")]
    if end.code != 2 or len(sentences) != 1 or "Traceback" in end.text:
        return f"ended with {end.code}: {end.text[-2000:]}"
    steps = workdir / "checkpoints"
    for step in saved_steps(workdir) if steps.is_dir() else []:
        if damage := find_damage(epath.Path(steps / str(step))):
            return f"the checkpoint of step {step} is damaged: {damage}"
    print(sentences[0], file=sys.stderr)
    return None


def learned(workdir: Path) -> dict[int, tuple[float, float]]:
    """Loss and batch of each step."""
    return {line["step"]: (line["loss"], line["digest/batch"]) for line in metrics(workdir)}


def mount(path: Path, options: str) -> None:
    """Mounts a disk in memory, or changes one."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=True)


def disk(directory: Path, rounds: int, rng: random.Random) -> Counts:
    """Trains on disks that fill up or become read-only."""
    counts, steps = Counts(), f"stages.main.steps={STEPS}"
    place = directory / "undisturbed"
    (end,) = train(LIGHT, place, *CHANGES, steps, "checkpoints.keep_last=100")
    if end.code:
        raise SystemExit(end.text)
    size = sum(x.stat().st_size for x in place.rglob("*") if x.is_file())
    for number in range(rounds):
        volume = directory / str(number)
        workdir, logs = volume / "run", directory / f"logs {number}"
        volume.mkdir()
        logs.mkdir()
        full = rng.random() < 0.7
        room = int(size * rng.uniform(0.02, 1)) if full else 2**28
        mount(volume, f"size={room}")
        changes = (*CHANGES, steps, "checkpoints.keep_last=100")
        with training(LIGHT, workdir, *changes, logs=logs) as run:
            if not full:
                after = rng.randrange(STEPS - 10)
                run.wait_for(lambda after=after, x=workdir: steps_done(x) > after)
                subprocess.run(["mount", "-o", "remount,ro", volume], check=True)
            (end,) = run.wait()
        kind = "full" if full else "read-only"
        if end.code == 0:
            counts[f"{kind}: ended before"] += 1
        elif problem := refusal_of(end, workdir):
            counts[f"{WRONG}{number}: {kind}: {problem}"] += 1
        else:
            mount_again = f"remount,rw,size={2**28}"
            subprocess.run(["mount", "-o", mount_again, volume], check=True)
            (end,) = train(LIGHT, workdir, *changes, logs=logs)
            same = end.code == 0 and learned(workdir) == learned(place)
            same = same and saved_steps(workdir) == saved_steps(place)
            counts[f"{kind}: resumed" if same else f"{WRONG}{number}: {kind}: {end}"] += 1
        subprocess.run(["umount", volume], check=True)
    return counts


def delete(shard: Path) -> None:
    """Deletes a shard."""
    shard.unlink()


def cut(shard: Path) -> None:
    """Cuts a shard where it lies, as an upload that begins again does."""
    os.truncate(shard, shard.stat().st_size // 3)


def overwrite(shard: Path) -> None:
    """Overwrites the second half of a shard."""
    size = shard.stat().st_size
    with shard.open("r+b") as file:
        file.seek(size // 2)
        file.write(bytes(size - size // 2))


def hang(shard: Path) -> None:
    """Puts something in place of a shard of which reading never ends."""
    shard.unlink()
    os.mkfifo(shard)


FAULTS: tuple[Callable[[Path], None], ...] = (delete, cut, overwrite, hang)


def data(directory: Path, rounds: int, rng: random.Random) -> Counts:
    """Takes data away from runs, and gives it back."""
    counts, packed, config = Counts(), directory / "packed", CONFIGS / "stored.py"
    with mock.patch.object(pack_module, "BLOCK_SIZE", 4):
        source = Memory(tuple(example(i) for i in range(200)))
        pack_module.pack(source, packed, kind="tar", shard_size=30)
    place, many = directory / "undisturbed", "stages.main.steps=1000"
    options = {"variables": [{"STORED_DATA": str(packed)}]}
    quick = (*CHANGES, "data.patience=1", "checkpoints.every=100000")
    (end,) = train(config, place, *quick, many, **options)
    if end.code:
        raise SystemExit(end.text)
    expected = {step: batch for step, (_, batch) in learned(place).items()}
    for number in range(rounds):
        fault, workdir = FAULTS[number % len(FAULTS)], directory / f"{number}" / "run"
        workdir.parent.mkdir()
        own = {"STORED_DATA": str(shutil.copytree(packed, directory / f"{number}" / "packed"))}
        shards = sorted(Path(own["STORED_DATA"]).rglob("*.tar"))
        options = {"variables": [own]}
        changes = (*quick, f"data.workers={rng.choice((0, 1))}")
        with training(config, workdir, *changes, "stages.main.steps=100000", **options) as run:
            after = rng.randrange(1, 20)
            run.wait_for(lambda after=after, x=workdir: steps_done(x) > after)
            shard = rng.choice(shards)
            content, began = shard.read_bytes(), time.monotonic()
            fault(shard)
            (end,) = run.wait()
            seconds = time.monotonic() - began
        name = f"{fault.__name__}: longest seconds"
        counts[name] = max(counts[name], round(seconds))
        if problem := refusal_of(end, workdir):
            counts[f"{WRONG}{number}: {fault.__name__}: {problem}"] += 1
            continue
        shard.unlink(missing_ok=True)
        shard.write_bytes(content)
        last = steps_done(workdir)
        (end,) = train(config, workdir, *changes, f"stages.main.steps={last + 3}", **options)
        found = {step: batch for step, (_, batch) in learned(workdir).items()}
        shared = found.keys() & expected.keys()
        # Of a shard that was overwritten, other examples took the place of bad ones before.
        bad = metrics(workdir)[-1]["bad_examples"]
        same = all(found[x] == expected[x] for x in shared) or (fault is overwrite and bad > 0)
        good = end.code == 0 and len(found) == last + 3 and same
        counts[
            f"{fault.__name__}: resumed" if good else f"{WRONG}{number}: {fault.__name__}: {end}"
        ] += 1
    return counts


PARTS: dict[str, Callable[[Path, int, random.Random], Counts]] = {
    "checkpoints": checkpoints,
    "disk": disk,
    "data": data,
}


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    if args.part == "disk" and "UNSHARED" not in os.environ:  # mounts end with the process
        os.environ["UNSHARED"] = "1"
        os.execvp("unshare", ["unshare", "-m", sys.executable, *sys.argv])
    jax.config.update("jax_platforms", "cpu")
    logging.getLogger().setLevel(logging.ERROR)
    processes.SECONDS = 3600  # where others use the machine too
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        counts = PARTS[args.part](Path(directory), args.rounds, random.Random(args.seed))
    figures = {"rounds": args.rounds, **counts, "seconds": round(time.monotonic() - start)}
    report(figures, args.json)
    if any(name.startswith(WRONG) for name in counts):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
