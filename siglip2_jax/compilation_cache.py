"""Compiled programs kept in a directory, so that a process that starts again compiles nothing.

JAX decides what the key of a program is and when to look for it; this module decides how programs
are stored. JAX writes its files in place: a killed process or a full disk leaves a part of one,
which JAX then reads, and warns of, at every start.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
from etils import epath
from jax._src import compilation_cache  # the only way to replace JAX's files
from jax._src.compilation_cache_interface import CacheInterface

from siglip2_jax.cache_files import seal, unseal
from siglip2_jax.errors import reason_of
from siglip2_jax.outputs import write_once

MOST_BYTES = 20 * 2**30
"""Limit of a local directory. A program for many chips may take hundreds of megabytes."""

_SUFFIX = ".program"
_ENDED = "/jax/core/compile/backend_compile_duration"  # also where a program was read
_READ = "/jax/compilation_cache/cache_hits"

log = logging.getLogger(__name__)


class ProgramFiles(CacheInterface):
    """Directory of compiled programs, a file each, which several processes may use at once.

    A file is the digest of a program and the program. An error is a warning, after which the
    directory is not read (or written) again: a request to a lost store takes half a minute.

    Args:
      path: the directory, local or `gs://`.
      most_bytes: limit of a local one.
    """

    def __init__(self, path: str | os.PathLike[str], most_bytes: int = MOST_BYTES):
        self._path: Any = epath.Path(path)  # JAX has local ones, and logs the name
        self._local = None if "://" in os.fspath(path) else Path(path)
        self._most_bytes = most_bytes
        self._first_write = threading.Lock()
        self._swept = False
        self._lost: set[str] = set()

    def get(self, key: str) -> bytes | None:
        """The program of a key; None where there is none. A damaged one is removed."""
        path = self._path / (key + _SUFFIX)
        with self._warning("read"):
            if "read" in self._lost:
                return None
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                return None
            if (program := unseal(content)) is not None:
                self._mark(path)
                return program
            log.warning("%s is damaged: it is removed, and the program compiled again", path)
            path.unlink(missing_ok=True)
        return None

    def put(self, key: str, value: bytes) -> None:
        """Adds a program; one that is there stays."""
        with self._warning("written"):
            if "written" not in self._lost:
                self._sweep()
                write_once(self._path / (key + _SUFFIX), seal(value))

    @contextmanager
    def _warning(self, verb: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of a file system or of any client of a store
            self._lost.add(verb)
            log.warning(
                "the compilation cache %s cannot be %s (%s); the run goes on without it",
                self._path,
                verb,
                reason_of(error),
            )

    def _mark(self, path: epath.Path) -> None:
        """Keeps the time at which a program was last read."""
        if self._local is not None:
            with suppress(OSError):  # another user's file
                os.utime(path)

    def _sweep(self) -> None:
        """Removes what was read longest ago, before the first write of a process."""
        with self._first_write:
            if self._swept or self._local is None:
                return
            self._swept, total = True, 0
            files = []
            for path in self._local.glob(f"*{_SUFFIX}*"):
                with suppress(FileNotFoundError):  # another process has renamed or removed it
                    stat = path.stat()
                    files.append((stat.st_mtime, stat.st_size, path))
            for _, size, path in sorted(files, reverse=True):
                total += size
                if total > self._most_bytes:
                    path.unlink(missing_ok=True)


def place_of_jax() -> str | None:
    """The directory that JAX's settings name (`JAX_COMPILATION_CACHE_DIR`); None if they do not."""
    return jax.config.values["jax_compilation_cache_dir"] or None


def keep_programs(directory: str | os.PathLike[str] | None) -> None:
    """Keeps what this process compiles in a directory, and reads what is there; starts no device.

    Nothing is kept where JAX's settings switch that off (`JAX_ENABLE_COMPILATION_CACHE`), nor on a
    CPU with several devices: a program that XLA reads back there no longer orders the collectives
    inside a scan with those outside of it, and devices wait for each other for ever.

    Args:
      directory: local or `gs://`, trusted, as programs in it are run; None keeps nothing.
    """
    if directory is None:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if not jax.config.values["jax_enable_compilation_cache"]:
        return
    compilation_cache.get_file_cache = _open
    settings = {
        "jax_compilation_cache_dir": os.fspath(directory),
        "jax_persistent_cache_min_compile_time_secs": 0.0,  # together small ones take long
        "jax_persistent_cache_enable_xla_caches": "none",  # files of XLA, which knows no stores
        "jax_traceback_in_locations_limit": 0,  # paths and lines would be in keys of kernels
    }
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def place_in_use() -> str | None:
    """The directory that programs are kept in, or None; starts the devices."""
    place = jax.config.values["jax_enable_compilation_cache"] and place_of_jax()
    replaced = compilation_cache.get_file_cache is _open
    return None if not place or (replaced and _are_several_of_a_cpu()) else place


def _open(path: str) -> tuple[ProgramFiles, str] | None:
    """Opens the directory when JAX first compiles, as devices are known by then."""
    return None if _are_several_of_a_cpu() else (ProgramFiles(path), path)


def _are_several_of_a_cpu() -> bool:
    return jax.default_backend() == "cpu" and jax.device_count() > 1


class Compilations:
    """Counts of the programs that this process has compiled, and has read from the cache."""

    def __init__(self) -> None:
        """Counts from now on, until `close`."""
        self._lock = threading.Lock()
        self._ended = self._read = 0
        jax.monitoring.register_event_duration_secs_listener(self._count_ended)
        jax.monitoring.register_event_listener(self._count_read)

    def close(self) -> None:
        """Ends the counting."""
        jax.monitoring.unregister_event_duration_listener(self._count_ended)
        jax.monitoring.unregister_event_listener(self._count_read)

    def counts(self) -> tuple[int, int]:
        """Number of programs that were compiled, and of those that were read."""
        with self._lock:
            return self._ended - self._read, self._read

    def _count_ended(self, event: str, duration_secs: float, **_: str | int) -> None:
        with self._lock:
            self._ended += event == _ENDED

    def _count_read(self, event: str, **_: str | int) -> None:
        with self._lock:
            self._read += event == _READ
