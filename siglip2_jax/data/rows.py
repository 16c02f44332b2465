"""Rows of JSON lines or CSV, read one by one where they stand: 12 bytes of memory each."""

from __future__ import annotations

import csv
import io
import os
import weakref
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterator
from threading import Lock
from typing import Any

import numpy as np
from etils import epath

from siglip2_jax import git_lfs
from siglip2_jax.data.example import SourceError
from siglip2_jax.data.patience import of_file
from siglip2_jax.data.text import parse_json, plain_text, read_spans

Span = tuple[int, int]  # offset and length in bytes
Keep = Callable[[int, Any], bool]


class Rows(ABC):
    """Rows of a file, with random access. Pickled by the file's path where it is local.

    A file in a store is kept in memory as it is.
    """

    def __init__(self, path: str | os.PathLike[str], keep: Keep = lambda *_: True) -> None:
        """Reads the file once, to find its rows.

        Args:
          path: local or `gs://`.
          keep: called with each row's line number and value; true for those to have.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: a row is malformed or not in UTF-8, or `keep` raises it.
        """
        self._path, starts, lengths = os.fspath(path), array("q"), array("L")
        local = os.path.isfile(self._path)
        self._identity = _identity(os.stat(self._path)) if local else None
        self._data = None if local else epath.Path(path).read_bytes()
        for number, row, (start, length) in self._read():
            if keep(number, row):
                starts.append(start)
                lengths.append(length)
        self._starts = np.array(starts, np.int64)
        self._lengths = np.array(lengths, np.uint32)
        self._lock, self._handle = Lock(), None

    @abstractmethod
    def _read(self) -> Iterator[tuple[int, Any, Span]]:
        """All rows: the number of the last line, the value and the place of each."""

    @abstractmethod
    def _parse(self, data: bytes) -> Any:
        """The value of a row.

        Raises:
          ValueError: it is malformed.
        """

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int, /) -> Any:
        """The value of a row.

        Raises:
          OSError: the file cannot be read any more; a SourceError where it is another one.
        """
        start, length = int(self._starts[index]), int(self._lengths[index])
        if self._data is not None:
            data = self._data[start : start + length]
        else:
            with of_file(self._path):
                data = os.pread(self._open(), length, start)
        try:
            return self._parse(data)
        except ValueError as error:  # it was one when it was opened
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
        vars(self).update(state)
        self._lock = Lock()


class JsonRows(Rows):
    """Rows of a file of JSON lines, of any value each."""

    def _read(self) -> Iterator[tuple[int, Any, Span]]:
        for number, text, span in read_spans(self._path):
            try:
                yield number, parse_json(text), span
            except ValueError as error:
                raise ValueError(f"{self._path}, line {number}: {error}") from error

    def _parse(self, data: bytes) -> Any:
        return parse_json(plain_text(data))


class CsvRows(Rows):
    """Rows of a CSV file with a header, as dicts of texts; quoted fields may hold line breaks."""

    def __init__(
        self, path: str | os.PathLike[str], delimiter: str = ",", keep: Keep = lambda *_: True
    ) -> None:
        """Reads the file once, to find its rows.

        Args:
          path: local or `gs://`.
          delimiter: what stands between fields.
          keep: as for `Rows`.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: as `read_csv`.
        """
        self._delimiter, self._columns = delimiter, list[str]()
        super().__init__(path, keep)

    def _read(self) -> Iterator[tuple[int, Any, Span]]:
        for number, row, span in read_csv(self._path, self._delimiter):
            self._columns = self._columns or list(row)
            yield number, row, span

    def _parse(self, data: bytes) -> Any:
        text = io.StringIO(_text(data), newline="")
        rows = [x for x in csv.reader(text, delimiter=self._delimiter) if x]
        if len(rows) != 1:
            raise ValueError(f"{len(rows)} rows")
        return _row(self._columns, rows[0], self._delimiter)


def read_csv(
    path: str | os.PathLike[str], delimiter: str
) -> Iterator[tuple[int, dict[str, str], Span]]:
    """The rows of a CSV file after its header.

    Yields:
      The number of a row's last line, from 1 on; the row; the offset and length of its bytes.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it has no header, or a row is malformed, has other fields than the header, or is
        not in UTF-8.
    """
    columns: list[str] = []
    number = start = end = 0

    def lines() -> Iterator[str]:
        nonlocal number, end
        with epath.Path(path).open("rb") as file:
            for number, line in enumerate(file, 1):
                end += len(line)
                if number == 1 and git_lfs.is_pointer(line):
                    raise ValueError(f"it is {git_lfs.POINTER}")
                yield _text(line)

    try:
        for fields in csv.reader(lines(), delimiter=delimiter):  # takes the lines of one row only
            span, start = (start, end - start), end
            if fields and columns:
                yield number, _row(columns, fields, delimiter), span
            elif fields:
                columns = fields
                if len(set(columns)) < len(columns):
                    raise ValueError(f"two columns have the same name: {', '.join(columns)}")
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}, line {number}: {error}") from error
    if not columns:
        raise ValueError(f"{path} is empty; expected a row with the names of columns")


def _row(columns: list[str], fields: list[str], delimiter: str) -> dict[str, str]:
    if len(fields) != len(columns):
        raise ValueError(
            f"a row has {len(fields)} fields and the header {len(columns)}; put quotes around "
            f"fields that hold {delimiter!r} or a line break"
        )
    return dict(zip(columns, fields, strict=True))


def _text(line: bytes) -> str:
    try:
        return line.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"not text in UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_size, stat.st_mtime_ns
