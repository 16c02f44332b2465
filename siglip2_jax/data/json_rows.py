"""Rows of a file of JSON lines, read one by one where they stand: 12 bytes of memory each."""

from __future__ import annotations

import os
import weakref
from array import array
from collections.abc import Callable
from threading import Lock
from typing import Any

import numpy as np
from etils import epath

from siglip2_jax.data.example import SourceError
from siglip2_jax.data.patience import of_file
from siglip2_jax.data.text import parse_json, plain_text, read_spans


class JsonRows:
    """Rows of a file of JSON lines, with random access. Pickled by the file's path where local.

    A file in a store is kept in memory as it is.
    """

    def __init__(
        self, path: str | os.PathLike[str], keep: Callable[[int, Any], bool] = lambda *_: True
    ) -> None:
        """Reads the file once, to find its rows.

        Args:
          path: local or `gs://`.
          keep: called with each row's line number and value; true for those to have.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: a line is not JSON in UTF-8, or `keep` raises it.
        """
        self._path, starts, lengths = os.fspath(path), array("q"), array("L")
        local = os.path.isfile(self._path)
        self._identity = _identity(os.stat(self._path)) if local else None
        self._data = None if local else epath.Path(path).read_bytes()
        for number, text, (start, length) in read_spans(path):
            try:
                row = parse_json(text)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
            if keep(number, row):
                starts.append(start)
                lengths.append(length)
        self._starts = np.array(starts, np.int64)
        self._lengths = np.array(lengths, np.uint32)
        self._lock, self._handle = Lock(), None

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int, /) -> Any:
        """The value of a row.

        Raises:
          OSError: the file cannot be read any more; a SourceError where it is another one.
        """
        start, length = int(self._starts[index]), int(self._lengths[index])
        if self._data is not None:
            line = self._data[start : start + length]
        else:
            with of_file(self._path):
                line = os.pread(self._open(), length, start)
        try:
            return parse_json(plain_text(line))
        except ValueError as error:  # it was JSON when it was opened
            raise self._changed() from error

    def _open(self) -> int:
        """The file's handle, in this process."""
        with self._lock:
            if self._handle is None:
                handle = os.open(self._path, os.O_RDONLY)
                weakref.finalize(self, os.close, handle)
                if _identity(os.fstat(handle)) != self._identity:
                    raise self._changed()
                self._handle = handle
            return self._handle

    def _changed(self) -> SourceError:
        return SourceError(
            f"{self._path} has changed since it was opened; run the same command again"
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_lock": None, "_handle": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = Lock()


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_size, stat.st_mtime_ns
