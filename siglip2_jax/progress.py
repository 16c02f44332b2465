"""Progress of long jobs: a bar on a terminal, plain log lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

SECONDS_BETWEEN_LINES = 10.0


@runtime_checkable
class Update(Protocol):
    """Callback that reports the progress of a job."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Shows the progress."""


@contextmanager
def progress(label: str, done: int = 0) -> Iterator[Update]:
    """Shows how far a job is, on standard error.

    Args:
      label: what is being done.
      done: how many items were done before, in an earlier run.

    Yields:
      A function to call with the number of items done so far, the number there are, and
      optionally a few words on how it goes.
    """
    # rich still draws a last bar when piped, so it is used on real terminals only.
    show = _bar if sys.stderr.isatty() else _lines
    with show(label, done) as update:
        yield update


@contextmanager
def _bar(label: str, done: int) -> Iterator[Update]:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=None, completed=done)

        def update(done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total, description=f"{label} {note}".strip())

        yield update


@contextmanager
def _lines(label: str, begun: int) -> Iterator[Update]:
    start = last = time.monotonic()

    def update(done: int, total: int, note: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if done == total or now - last >= SECONDS_BETWEEN_LINES:
            last = now
            rate = (done - begun) / max(now - start, 1e-9)
            eta = "" if done == total else f", {(total - done) / max(rate, 1e-9):.0f} s left"
            line = f"{label}: {done}/{total}, {rate:.1f}/s{eta}" + (f", {note}" if note else "")
            print(line, file=sys.stderr, flush=True)

    yield update
