"""Long work says how far it is: by lines where nobody watches, by a bar on a terminal."""

import contextlib
import os
import re
import sys

import pytest

from siglip2_jax import progress as module
from siglip2_jax.progress import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(module.time, "monotonic", lambda: Clock.now)
    return Clock


def test_lines_are_rare_and_tell_rate_and_rest(capsys, clock):
    with progress("photos") as update:
        for i in range(1, 41):
            clock.now += 1
            update(2 * i, 80)
    out, err = capsys.readouterr()
    assert out == ""  # standard output belongs to results
    assert err.splitlines() == [
        "photos: 20/80, 2.0/s, 30 s left",
        "photos: 40/80, 2.0/s, 20 s left",
        "photos: 60/80, 2.0/s, 10 s left",
        "photos: 80/80, 2.0/s",
    ]


def test_a_resumed_job_counts_its_own_speed(capsys, clock):
    with progress("photos", done=1000) as update:
        clock.now += 10
        update(1010, 1030)
    assert capsys.readouterr().err == "photos: 1010/1030, 1.0/s, 20 s left\n"


def test_no_time_at_all_is_no_error(capsys, clock):
    with progress("photos") as update:
        update(1, 1)
    assert capsys.readouterr().err.startswith("photos: 1/1, ")


def test_a_terminal_gets_a_bar(monkeypatch):
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "120")
        with progress("photos", done=1) as update:
            update(2, 3)
            update(3, 3)
    text = ""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while chunk := os.read(ours, 100_000):
            text += chunk.decode()
    os.close(ours)
    assert "photos" in text and "\x1b[" in text
    assert "3/3" in re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", text)
