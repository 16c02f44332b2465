"""Workers: which one does what, those that are killed, and errors in their place."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest

from siglip2_jax.data.example import SourceError
from siglip2_jax.data.workers import pool as pool_module
from siglip2_jax.data.workers import steps as steps_module
from siglip2_jax.data.workers.ring import Ring, batch_bytes
from siglip2_jax.data.workers.steps import Steps
from siglip2_jax.data.workers.work import Outcome, Task
from siglip2_jax.types import Batch, Patches

ROWS, PARTS = 6, 4


@dataclass(frozen=True)
class Counting:
    """Rows that say which step and row they are, and which process wrote them.

    Attributes:
      steps: how many there are; every other one is smaller.
      waiting: a folder; the part of the step and number of the name of each file there waits until
        the file is gone.
      failing: a step and part that fails.
    """

    steps: int
    waiting: Path
    failing: tuple[int, int] | None = None

    def buffer_bytes(self) -> int:
        return batch_bytes(*self.like(0))

    def parts(self, step: int) -> int:
        return PARTS

    def owner(self, step: int, part: int) -> int:
        return part

    def like(self, step: int) -> tuple[Batch, int]:
        image = Patches(
            pixels=np.zeros((1, 2, 3), np.float32),
            yx=np.zeros((1, 2, 2), np.int32),
            valid=np.zeros((1, 2), np.bool_),
        )
        row = Batch(image, np.zeros((1, 2), np.int32), {"process": np.zeros(1, np.int64)})
        return row, ROWS - step % 2

    def fill(self, step: int, part: int, out: Batch) -> Outcome:
        (self.waiting / f"{step}.{part}.begun").touch()
        if (step, part) == self.failing:
            raise ValueError(f"step {step} is broken")
        _, size = self.like(step)
        for row in range(part * size // PARTS, (part + 1) * size // PARTS):
            out.text[row] = step, row
            out.image.pixels[row] = step + row / 8
            out.fields["process"][row] = os.getpid()
        while (self.waiting / f"{step}.{part}").exists():
            time.sleep(0.01)
        return Outcome(step % 2, (f"{step}/{part}",) if step % 2 else ())


def open_steps(work: Counting, workers: int, slots: int = 2) -> Steps:
    return Steps(work, range(work.steps), workers=workers, threads=1, slots=slots)


def check(steps: Steps, step: int) -> tuple[np.ndarray, int]:
    """Takes a step, which must be right; gives the process of each row, and restarts."""
    filled = steps.take()
    size = ROWS - step % 2
    np.testing.assert_array_equal(filled.batch.text[:, 0], np.full(size, step))
    np.testing.assert_array_equal(filled.batch.text[:, 1], np.arange(size))
    expected = np.broadcast_to((step + np.arange(size) / 8)[:, None, None], (size, 2, 3))
    np.testing.assert_array_equal(filled.batch.image.pixels, expected)
    problems = [line for outcome in filled.outcomes for line in outcome.problems]
    assert problems == [f"{step}/{part}" for part in range(PARTS) if step % 2]
    processes = filled.batch.fields["process"].copy()
    steps.release(filled.slot)
    return processes, filled.restarts


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("workers", [0, 2])
def test_steps_come_in_order_whoever_is_slow(tmp_path, workers):
    slow = tmp_path / "1.2"
    slow.touch()
    with closing(open_steps(Counting(7, tmp_path), workers)) as steps:
        first, _ = check(steps, 0)
        if workers:  # each part has its process: parts 0 and 2 of 6 rows are rows 0, 3
            assert len(set(first)) == 2 and first[0] == first[3] != first[1] == first[2]
            assert os.getpid() not in first
            wait_for(tmp_path / "1.3.begun")
        # Steps 1 and 2 have the two buffers, so that nobody works on step 3.
        assert not list(tmp_path.glob("3.*"))
        slow.unlink()
        for step in range(1, 7):
            processes, restarts = check(steps, step)
            assert set(processes) == set(first) and restarts == 0
    assert not any(map(running, set(first) - {os.getpid()}))


def running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_a_killed_worker_starts_again_and_its_parts_are_done_again(tmp_path):
    (tmp_path / "1.1").touch()
    with closing(open_steps(Counting(5, tmp_path), 2)) as steps:
        before, _ = check(steps, 0)
        wait_for(tmp_path / "1.1.begun")
        (tmp_path / "1.1.begun").unlink()
        os.kill(before[1], signal.SIGKILL)  # of parts 1 and 3
        (tmp_path / "1.1").unlink()
        after, restarts = check(steps, 1)
        assert restarts == 1 and (tmp_path / "1.1.begun").exists()
        assert before[1] not in after and before[0] in after
        for step in range(2, 5):
            processes, restarts = check(steps, step)
            assert restarts == 0 and set(processes) == set(after)


@pytest.mark.slow
def test_workers_that_are_killed_again_and_again_stop(tmp_path, monkeypatch):
    monkeypatch.setattr("siglip2_jax.data.workers.pool.SECONDS", 600.0)  # however busy the machine
    killed = []
    with (
        closing(open_steps(Counting(40, tmp_path), 1)) as steps,
        pytest.raises(
            SourceError,
            match=r"^3 data workers were lost within \d+ s, the last by SIGKILL, as the out-of-"
            r"memory killer sends; lower data.workers or data.prefetch, or give the machine more",
        ),
    ):
        for step in range(40):
            processes, _ = check(steps, step)
            if processes[0] not in killed:
                os.kill(processes[0], signal.SIGKILL)
                killed.append(processes[0])
    assert len(killed) == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_comes_when_its_step_is_asked_for(tmp_path, workers):
    with closing(open_steps(Counting(5, tmp_path, failing=(2, 1)), workers, slots=4)) as steps:
        check(steps, 0)
        wait_for(tmp_path / "2.1.begun")
        check(steps, 1)
        with pytest.raises(ValueError, match="^step 2 is broken$"):
            check(steps, 2)


class Unknown(Counting):
    """Work that a worker cannot begin."""

    def __reduce__(self):
        return _refuse, ()


def _refuse():
    raise ValueError("this cannot be unpickled")


def test_work_that_a_worker_cannot_begin(tmp_path):
    with (
        closing(open_steps(Unknown(1, tmp_path), 1)) as steps,
        pytest.raises(ValueError, match="^this cannot be unpickled$"),
    ):
        steps.take()


NOTEBOOK = """
import numpy as np

from siglip2_jax.data.workers.ring import batch_bytes
from siglip2_jax.data.workers.steps import Steps
from siglip2_jax.data.workers.work import Outcome
from siglip2_jax.types import Batch, Patches

NUMBER = 7


class Cell:
    def owner(self, step, part):
        return part

    def buffer_bytes(self):
        return batch_bytes(*self.like(0))

    def parts(self, step):
        return 1

    def like(self, step):
        image = Patches(
            pixels=np.zeros((1, 2, 3), np.float32),
            yx=np.zeros((1, 2, 2), np.int32),
            valid=np.zeros((1, 2), np.bool_),
        )
        return Batch(image, np.zeros((1, 2), np.int32)), 3

    def fill(self, step, part, out):
        out.text[:] = NUMBER
        return Outcome(0, ())


if __name__ == "__main__":
    print(Steps(Cell(), [0], workers=1, threads=1, slots=1).take().batch.text.sum())
"""


@pytest.mark.slow
def test_what_a_notebook_defines_reaches_the_workers():
    result = subprocess.run(
        [sys.executable, "-c", NOTEBOOK], capture_output=True, text=True, timeout=120
    )
    assert result.stdout == "42\n", result.stderr


@pytest.mark.parametrize("workers", [0, 1])
def test_work_that_hangs_ends_with_a_sentence(tmp_path, monkeypatch, workers):
    """And is left behind, so that the process can save and end."""
    monkeypatch.setattr(steps_module, "SECONDS_OF_WORK", 0.3)
    monkeypatch.setattr(pool_module, "SECONDS_TO_CLOSE", 0.1)
    hanging = tmp_path / "0.2"
    hanging.touch()
    work = Counting(2, tmp_path)
    with closing(Steps(work, range(2), workers=workers, threads=1, slots=2, patience=0.0)) as steps:
        with pytest.raises(SourceError, match="no data has come for 0.3 s, as where a mount hangs"):
            steps.take()
    hanging.unlink()


@dataclass(frozen=True)
class Closing(Counting):
    """Work that closes the team that it is told of."""

    told: SimpleQueue = field(default_factory=SimpleQueue)
    results: SimpleQueue = field(default_factory=SimpleQueue)

    def fill(self, step: int, part: int, out: Batch) -> Outcome:
        try:
            self.results.put(self.told.get().close())
        except RuntimeError as error:
            self.results.put(error)
        return Outcome(0, ())


def test_a_thread_may_close_the_team_that_it_is_of(tmp_path):
    """The garbage collector closes what is left in a cycle, on whatever thread it runs."""
    work = Closing(1, tmp_path)
    team = pool_module.Threads(work, Ring(1, work.buffer_bytes()), threads=2)
    team.submit(Task(0, 0, 0), 0)
    work.told.put(team)
    assert work.results.get(timeout=60) is None
