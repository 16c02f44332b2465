"""Cores and memory within the limits of a container."""

import os

import pytest

from siglip2_jax.data.workers import machine
from siglip2_jax.data.workers.machine import free_memory, usable_cores, worker_count


@pytest.fixture
def container(tmp_path, monkeypatch):
    """A stand-in for what the kernel says, of 12 cores and 64 GiB of which 40 are free."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 67108864 kB\nMemFree: 1 kB\nMemAvailable: 41943040 kB\n")
    monkeypatch.setattr(machine, "_MEMORY", meminfo)
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("quota", "cores", "workers"),
    [
        (None, 12, 11),
        ("max 100000", 12, 11),
        ("450000 100000", 4, 3),
        ("200000 100000", 2, 0),
        ("50000 100000", 1, 0),
        ("9900000 100000", 12, 11),
    ],
)
def test_one_core_is_left_to_the_training_process(container, quota, cores, workers):
    if quota:
        (container / "cpu.max").write_text(quota + "\n")
    assert usable_cores() == cores
    assert worker_count("auto") == workers
    assert worker_count(5) == 5


def test_memory_within_the_limit(container):
    assert free_memory() == 40 * 2**30
    (container / "memory.max").write_text("max\n")
    (container / "memory.current").write_text(f"{6 * 2**30}\n")
    assert free_memory() == 40 * 2**30
    (container / "memory.max").write_text(f"{16 * 2**30}\n")
    assert free_memory() == 10 * 2**30
    # Files that were read are dropped where memory is needed.
    (container / "memory.stat").write_text(f"anon 5\ninactive_file {2 * 2**30}\n")
    assert free_memory() == 12 * 2**30


def test_where_the_system_does_not_say(container, monkeypatch):
    monkeypatch.setattr(machine, "_MEMORY", container / "absent")
    assert free_memory() is None
