"""Work in processes: when one is killed, and when it fails."""

import pytest
from planner import killed

from siglip2_jax.planner.processes import in_processes


@pytest.fixture(autouse=True)
def pid(tmp_path, monkeypatch):
    """A file with the number of a process that is killed."""
    monkeypatch.setenv("KILLED_PID", str(tmp_path / "pid"))
    return tmp_path / "pid"


def test_a_killed_process_starts_again_with_fewer_beside_it(pid):
    answers = [answer for _, answer in in_processes(killed.work, ["victim", "witness", "last"], 2)]
    assert answers == ["WITNESS", "LAST", "VICTIM"]
    assert not killed.is_alive(pid)


def test_one_that_is_killed_alone_ends_the_work():
    with pytest.raises(RuntimeError, match="for want of memory; plan on a machine with more"):
        list(in_processes(killed.work, ["always"], 2))


def test_errors_of_the_user_come_back():
    with pytest.raises(ValueError, match="^a sentence$"):
        list(in_processes(killed.work, ["wrong"], 1))


def test_other_errors_are_shown_by_the_process(capfd):
    with pytest.raises(RuntimeError, match="failed, as its output above says"):
        list(in_processes(killed.work, ["broken"], 1))
    assert "ZeroDivisionError" in capfd.readouterr().err
