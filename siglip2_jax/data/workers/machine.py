"""Cores and memory that this machine, or the container on it, has for data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

_CGROUP = Path("/sys/fs/cgroup")  # version 2, as containers see their own
_MEMORY = Path("/proc/meminfo")


def worker_count(workers: int | Literal["auto"]) -> int:
    """Number of worker processes: "auto" leaves one core to the training process.

    On one or two cores that is none: processes would only take memory there.
    """
    if workers != "auto":
        return workers
    cores = usable_cores()
    return cores - 1 if cores > 2 else 0


def usable_cores() -> int:
    """Number of cores that this process may use: by its affinity, and by its container's limit."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = _words(_CGROUP / "cpu.max")  # microseconds, or "max", of each period
    if len(quota) == 2 and quota[0].isdecimal():
        cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
    return cores


def free_memory() -> int | None:
    """Bytes that processes can still take, within their container's limit; None if unknown."""
    free = []
    words = _words(_MEMORY)
    if "MemAvailable:" in words:
        free.append(1024 * int(words[words.index("MemAvailable:") + 1]))
    limit, used = (_words(_CGROUP / f"memory.{name}") for name in ("max", "current"))
    if limit and used and limit[0].isdecimal():
        cache = _words(_CGROUP / "memory.stat")
        kept = int(cache[cache.index("inactive_file") + 1]) if "inactive_file" in cache else 0
        free.append(max(0, int(limit[0]) - int(used[0]) + kept))
    return min(free, default=None)


def _words(path: Path) -> list[str]:
    """The words of a file of the kernel; none where there is no such file."""
    try:
        return path.read_text().split()
    except OSError:
        return []
