"""Blocks of examples in files of a local directory, in place of memory."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Sequence
from threading import Lock
from typing import Any

from siglip2_jax.data.example import ExampleError, SourceError

# Bytes of a file; it is freed when no block in it is needed.
_FILE = 2**28


class Cache:
    """Blocks in files without a name, which are gone when they are not needed, or the process is.

    Attributes:
      directory: where the files are; local.
    """

    def __init__(self, directory: str) -> None:
        self.directory, self._lock = directory, Lock()
        self._file: _File | None = None

    def keep(self, examples: Sequence[Any]) -> Sequence[Any]:
        """The same examples, read from the disk whenever they are asked for.

        Raises:
          SourceError: the directory cannot be written, or its disk is full.
        """
        items = [pickle.dumps(_taken(examples, i)) for i in range(len(examples))]
        size = sum(map(len, items))
        try:
            with self._lock:
                if self._file is None or self._file.end >= _FILE:
                    self._file = _File(self.directory)
                file, start = self._file, self._file.end
                file.end += size
            file.write(b"".join(items), start)
        except OSError as error:
            raise SourceError(
                f"{self.directory}: the cache cannot be written ({error}); free space, choose "
                "another directory, or lower BlockShuffle.window"
            ) from error
        return _Kept(file, start, [len(item) for item in items])


def _taken(examples: Sequence[Any], index: int) -> dict[str, Any] | ExampleError:
    try:
        return examples[index]
    except ExampleError as error:
        return error


class _File:
    def __init__(self, directory: str) -> None:
        os.makedirs(directory, exist_ok=True)
        self._handle, path = tempfile.mkstemp(dir=directory)
        os.unlink(path)
        self.end = 0

    def write(self, data: bytes, start: int) -> None:
        rest = memoryview(data)
        while rest:
            written = os.pwrite(self._handle, rest, start)
            rest, start = rest[written:], start + written

    def read(self, start: int, size: int) -> bytes:
        return os.pread(self._handle, size, start)

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            os.close(self._handle)


class _Kept(Sequence):
    def __init__(self, file: _File, start: int, sizes: list[int]) -> None:
        self._file, self._start, self._sizes = file, start, sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, index):
        start = self._start + sum(self._sizes[:index])
        item = pickle.loads(self._file.read(start, self._sizes[index]))
        if isinstance(item, ExampleError):
            raise item
        return item
