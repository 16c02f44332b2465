"""Reading again what may pass: for how long, how often, and what is said in the end."""

import errno
import os

import pytest

from siglip2_jax.data import patience
from siglip2_jax.data.example import ExampleError, SourceError
from siglip2_jax.data.patience import patiently


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only while one sleeps; gives the pauses."""
    pauses = []
    monkeypatch.setattr(patience.time, "sleep", pauses.append)
    monkeypatch.setattr(patience.time, "monotonic", lambda: sum(pauses))
    monkeypatch.setattr(patience.random, "uniform", lambda low, high: high)
    return pauses


class Reader:
    """Fails so many times, then reads."""

    def __init__(self, times, *error):
        self.left, self.error = times, OSError(*error)

    def __call__(self):
        if self.left:
            self.left -= 1
            raise self.error
        return "bytes"


def test_a_minute_of_errors_passes(clock):
    """0.1 + 0.2 + ... + 25.6 s and then 30 s each: 10 failures take 81 s."""
    reader = Reader(10, errno.ESTALE, os.strerror(errno.ESTALE))
    assert patiently(reader, "a.tar", 300.0) == "bytes"
    assert clock == pytest.approx([0.1 * 2**i for i in range(9)] + [30.0])


def test_the_end_of_patience(clock):
    with pytest.raises(SourceError) as error:
        patiently(Reader(1000, errno.EIO, os.strerror(errno.EIO)), "example 7", 300.0)
    assert str(error.value) == (
        "example 7 cannot be read (Input/output error), tried for 300 s (Data.patience); run the "
        "same command again once it can"
    )
    assert 270 <= sum(clock) <= 300


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EMFILE, errno.ENOSPC])
def test_what_does_not_pass_is_told_at_once(clock, number):
    reader = Reader(1, number, os.strerror(number), b"/mnt/a")
    with pytest.raises(SourceError, match=f"^/mnt/a cannot be read .{os.strerror(number)}.; "):
        patiently(reader, "example 7", 300.0)
    assert not clock


@pytest.mark.parametrize("error", [SourceError("a.tar is away"), ExampleError("no caption")])
def test_what_is_told_already_is_left_as_it_is(clock, error):
    def read():
        raise error

    with pytest.raises(type(error)) as raised:
        patiently(read, "example 7", 300.0)
    assert raised.value is error and not clock
