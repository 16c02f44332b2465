"""Real training processes on this machine, each with a few simulated devices."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from etils import epath
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import v1 as ocp
from xla import environment

from siglip2_jax.demo import HERE

CONFIGS = Path(__file__).with_name("configs")
SMALL, LIGHT = CONFIGS / "small.py", CONFIGS / "light.py"
MEASURED = CONFIGS / "measured.py"
ONE_LENGTH = ("lengths.budgets=(16,)",)  # one program to compile

COMMAND = "import sys; from siglip2_jax.cli import main; sys.exit(main())"
SECONDS = 300  # more than any run here takes, even where others use the machine too


class Ended(NamedTuple):
    """Exit code of a process (minus the signal's number if killed), and all it wrote."""

    code: int
    text: str


class Processes:
    """Some running processes."""

    def __init__(self, popen: Sequence[subprocess.Popen], logs: Sequence[Path]):
        self.popen, self._logs = popen, logs

    def kill(self, number: int, index: int = 0) -> None:
        """Sends a signal to one of them."""
        self.popen[index].send_signal(number)

    def kill_all(self, number: int, index: int = 0) -> None:
        """Sends a signal to one of them and to all that it has started, as a terminal does."""
        os.killpg(self.popen[index].pid, number)

    def running(self) -> bool:
        """True while any is still there."""
        return any(process.poll() is None for process in self.popen)

    def wait(self) -> list[Ended]:
        """Until all have ended."""
        codes = [process.wait(SECONDS) for process in self.popen]
        return [Ended(*pair) for pair in zip(codes, self.texts(), strict=True)]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Until something is the case, or all have ended."""
        end = time.monotonic() + SECONDS
        while self.running() and not condition():
            assert time.monotonic() < end, self.texts()
            time.sleep(0.01)

    def texts(self) -> list[str]:
        """Output of each so far."""
        return [log.read_text(errors="replace") for log in self._logs]


@contextmanager
def started(
    logs: Path,
    commands: Sequence[Sequence[str]],
    devices: int,
    variables: Sequence[Mapping[str, str]] | None = None,
    scans: bool = True,
):
    """Runs Python with the given arguments, once for each process; kills what is left at the end.

    Args:
      logs: a directory for what they write.
      commands: arguments of each.
      devices: simulated devices of each.
      variables: further ones of the environment of each.
      scans: whether their programs may hold a scan.
    """
    env = environment(devices, len(commands), scans)
    paths = [logs / f"{time.monotonic_ns()}.{i}.log" for i in range(len(commands))]
    popen = []
    try:
        variables = variables or [{}] * len(commands)
        for path, command, extra in zip(paths, commands, variables, strict=True):
            with path.open("w") as log:
                arguments = [sys.executable, *command]
                output = {"stdout": log, "stderr": log, "start_new_session": True}
                popen.append(subprocess.Popen(arguments, env=env | extra, **output))
        yield Processes(popen, paths)
    finally:
        for process in popen:
            process.kill()
            process.wait()


def training(
    config: Path,
    workdir: Path | str,
    *changes: str,
    processes: int = 1,
    devices: int = 1,
    logs: Path | None = None,
    only: Sequence[Sequence[str]] | None = None,
    variables: Sequence[Mapping[str, str]] | None = None,
):
    """`siglip2 train`, as a context.

    Args:
      config: the file.
      workdir: local or `gs://`.
      changes: for `--set`.
      processes: how many.
      devices: of each process.
      logs: a directory for the processes' output; the one of a local workdir by default.
      only: further changes, of each process.
      variables: as for `started`.
    """
    port = free_port()
    commands = []
    for i in range(processes):
        sets = [x for change in (*changes, *(only[i] if only else ())) for x in ("--set", change)]
        command = ["-c", COMMAND, "train", str(config), "--workdir", str(workdir), *sets]
        if processes > 1:
            command += ["--coordinator", f"localhost:{port}", "--num-processes", str(processes)]
            command += ["--process-id", str(i)]
        commands.append(command)
    scans = config != LIGHT and "compute.scan=False" not in changes
    return started(logs or Path(workdir).parent, commands, devices, variables, scans)


def train(config: Path, workdir: Path | str, *changes: str, **options) -> list[Ended]:
    """`siglip2 train` to its end; `options` as for `training`."""
    with training(config, workdir, *changes, **options) as run:
        return run.wait()


def corrupt_photos(folder: Path, every: int) -> list[str]:
    """Copies the shipped photos, of which some are cut off.

    Args:
      folder: where to; it becomes a source's `path`.
      every: one of how many is corrupt.

    Returns:
      The names of the corrupt ones.
    """
    (folder / "photos").mkdir(parents=True)
    shutil.copy(HERE / "examples.jsonl", folder)
    photos = sorted((HERE / "photos").iterdir())
    for i, photo in enumerate(photos):
        data = photo.read_bytes()
        (folder / "photos" / photo.name).write_bytes(data[:100] if i % every == 0 else data)
    return [photo.name for photo in photos[::every]]


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def metrics(workdir: Path) -> list[dict]:
    """The lines of `metrics.jsonl`; none before it is there."""
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def steps_done(workdir: Path) -> int:
    """Number of lines, whole or not."""
    path = workdir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def numbers(workdir: Path) -> dict[int, dict[str, float]]:
    """The numbers of each step but for times; fails if a step has two lines or no loss."""
    lines = metrics(workdir)
    times = ("time", "examples_per_s", "data_wait")
    kept = [{k: v for k, v in line.items() if not k.startswith(times)} for line in lines]
    found = {line["step"]: line for line in kept}
    assert len(found) == len(lines), "a step has two lines"
    assert all("loss" in line for line in lines)
    return found


def saved_steps(workdir: Path) -> list[int]:
    """Steps with a finished checkpoint."""
    names = [path.name for path in (workdir / "checkpoints").iterdir()]
    return sorted(int(name) for name in names if name.isdecimal())


def saved(workdir: Path, step: int, tree: str = "params") -> dict[str, np.ndarray]:
    """The arrays of a checkpoint by path, read without the code under test."""
    path = epath.Path(workdir) / "checkpoints" / str(step)
    device = SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
        ocp.checkpointables_metadata(path).metadata[tree],
    )
    leaves = jax.tree_util.tree_leaves_with_path(ocp.load_checkpointables(path, {tree: like})[tree])
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray], atol: float = 0.0) -> None:
    """Two sets of arrays are equal, bit by bit unless a tolerance is given."""
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_allclose(a[path], b[path], rtol=0, atol=atol, err_msg=path)
