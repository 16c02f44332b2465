"""Fingerprints of the content that results depend on, so that stale results are noticed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import numpy as np

TABLES = frozenset(".json .jsonl .csv .tsv .txt .p".split())
"""Endings of files that count by their content; all others, such as images, by size and time."""

_BESIDE = ".idx.npz", ".log", ".out", ".tmp"
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_CHUNK = 1 << 24


def fingerprint(value: Any) -> str:
    """Digest of plain data; other objects in it count by their `repr`."""
    text = json.dumps(value, sort_keys=True, default=repr)
    return fingerprint_bytes(_ADDRESS.sub("", text).encode())


def fingerprint_bytes(data: bytes | memoryview) -> str:
    """Digest of bytes."""
    return sha256(data).hexdigest()[:32]


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a local file, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest()


def fingerprint_arrays(arrays: Mapping[str, Any]) -> str:
    """Digest of named arrays: their dtypes, shapes and every byte."""
    with ThreadPoolExecutor() as pool:  # hashing lets other threads run
        digests = {
            name: [*pool.map(fingerprint_bytes, _pieces(np.asarray(x)))]
            for name, x in arrays.items()
        }
    return fingerprint(digests)


def _pieces(array: np.ndarray) -> Iterator[bytes | memoryview]:
    yield f"{array.dtype} {array.shape}".encode()
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    for start in range(0, len(data), _CHUNK):
        yield data[start : start + _CHUNK]


def fingerprint_files(
    root: str | os.PathLike[str],
    patterns: Sequence[str] = ("*",),
    skip: str | os.PathLike[str] | None = None,
) -> str:
    """Digest of local files: names, the content of tables, size and time of all others.

    Hidden files do not count, nor do logs and the indices that are kept beside tars.

    Args:
      root: a directory.
      patterns: globs in it, of files, and of directories, in which everything counts.
      skip: a directory that does not count.
    """
    digest = sha256()
    seen = {os.path.realpath(skip)} if skip is not None else set[str]()
    for top in sorted({top for pattern in patterns for top in Path(root).glob(pattern)}):
        for path in [str(top)] if top.is_file() else _walk(top, seen):
            if not os.path.basename(path).startswith(".") and not path.endswith(_BESIDE):
                digest.update(
                    f"{os.path.relpath(path, root)!r} {fingerprint_file(path)}\n".encode()
                )
    return digest.hexdigest()[:32]


def _walk(top: Path, seen: set[str]) -> Iterator[str]:
    """Files in a directory and in those that links in it lead to, each once."""
    for folder, folders, names in os.walk(top, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen or os.path.basename(folder).startswith("."):
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (os.path.join(folder, name) for name in sorted(names))


def fingerprint_file(path: str) -> str | None:
    """Digest of a table's content, size and time of another file; None where there is none."""
    try:
        if os.path.splitext(path)[1].lower() in TABLES:
            return sha256_of(path)[:32]
    except (FileNotFoundError, NotADirectoryError):
        return None
    return stamp_file(path)


def stamp_file(path: str) -> str | None:
    """Size and time of a local file; None where there is none."""
    try:
        stat = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return f"{stat.st_size} {stat.st_mtime_ns}"
