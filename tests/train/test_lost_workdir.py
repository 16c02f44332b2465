"""Errors of the place where a run is kept, of which some name no file."""

import errno
import logging
import os
import sys

import pytest
from etils import epath

from siglip2_jax.cli.train import Messages
from siglip2_jax.train.run import Run, StoreError


@pytest.fixture
def run(tmp_path):
    """A run as far as its workdir goes."""
    run = object.__new__(Run)
    run.workdir = epath.Path(tmp_path)
    return run


def test_an_error_without_a_file_names_the_workdir(run, tmp_path):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(StoreError) as raised, run.storing():
        raise full
    assert str(raised.value) == (
        f"{tmp_path} cannot be read or written ([Errno 28] No space left on device); run the same "
        "command again once it can: training resumes from the last checkpoint there"
    )
    assert raised.value.__cause__ is full


def test_an_error_that_names_a_file_and_one_of_the_config_stay(run):
    for error in (FileNotFoundError(errno.ENOENT, "gone", "photo.jpg"), ValueError("no number")):
        with pytest.raises(type(error)) as raised, run.storing():
            raise error
        assert raised.value is error


def test_a_client_whose_errors_are_no_operating_system_errors(run, tmp_path):
    kind = type("HttpError", (Exception,), {"__module__": "gcsfs.retry"})
    with pytest.raises(StoreError, match=rf"^{tmp_path} cannot be read or written \(HttpError\)"):
        with run.storing():
            raise kind()


def test_an_error_of_tensorstore_is_one_of_the_workdir(run, tmp_path):
    error = ValueError('PERMISSION_DENIED: Error writing "/a/b": Read-only\nfile system')
    message = (
        rf"^{tmp_path} cannot be read or written \(PERMISSION_DENIED: .* Read-only file system"
    )
    with pytest.raises(StoreError, match=message), run.storing():
        raise error
    with pytest.raises(ValueError) as raised, run.storing():
        raise ValueError("DATA_LOSS: Checksum failed")  # which is for whoever reads the values
    assert not isinstance(raised.value, StoreError)


def test_a_broken_collective_is_none_of_the_workdir(run):
    """Error of JAX where another process is killed while the arrays of both are read to save."""
    error = ValueError(
        "UNKNOWN: Gloo AllGather failed: [external/gloo/gloo/transport/tcp/pair.cc:547] Connection "
        "closed by peer [127.0.0.1]:41616"
    )
    with pytest.raises(ValueError) as raised, run.storing():
        raise error
    assert raised.value is error and not hasattr(run, "_lost")


def test_logs_have_no_tracebacks():
    try:
        raise OSError("cannot connect")
    except OSError:
        record = logging.LogRecord("absl", logging.ERROR, "", 0, "it failed", (), sys.exc_info())
    assert Messages().format(record) == "it failed"
