"""Records of many ArrayRecord files under one number each, with few files open at a time."""

from __future__ import annotations

import errno
import os
import re
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np
from jaxtyping import Int64

from siglip2_jax import git_lfs
from siglip2_jax.data.example import SourceError, naming
from siglip2_jax.data.open_files import raise_file_limit
from siglip2_jax.data.prefetch import thread_map
from siglip2_jax.strings import Strings

_AHEAD = 64
# A reader holds an index of its file: some 32 bytes a record.
_INDEXED_RECORDS = 4_000_000
_SYSTEM_ERROR = re.compile(r"\w+\(\) failed: ([^;]+);")  # as the library words it
_NUMBERS = {os.strerror(number): number for number in errno.errorcode}
_FULL = (errno.EMFILE, errno.ENFILE)
_Key = tuple[object, str]  # of whom, and the path


def count_records(paths: Sequence[str]) -> Int64[np.ndarray, " files"]:
    """Numbers of records of files, read from their ends.

    Raises:
      ValueError: a file is not a whole ArrayRecord file.
      OSError: a file cannot be read.
    """
    raise_file_limit()

    def count(path: str) -> int:
        reader = _open(path)
        try:
            return reader.num_records()
        finally:
            reader.close()

    return np.fromiter(thread_map(count, paths, _AHEAD), np.int64, len(paths))


@dataclass(frozen=True, eq=False)
class RecordFiles:
    """Some records of some files, in order. Picklable; files are opened when they are read.

    Attributes:
      paths: of the files.
      firsts: number of the first record that is used of each file.
      counts: how many are used from there on.
      totals: how many records each file has.
    """

    paths: Strings
    firsts: Int64[np.ndarray, " files"]
    counts: Int64[np.ndarray, " files"]
    totals: Int64[np.ndarray, " files"]

    @cached_property
    def _ends(self) -> Int64[np.ndarray, " files"]:
        return np.cumsum(self.counts)

    def __len__(self) -> int:
        return int(self.counts.sum())

    def read(self, start: int, stop: int) -> list[bytes | ValueError]:
        """Records from `start` to before `stop`; an error in place of each that is damaged.

        Raises:
          OSError: a file cannot be read; a SourceError where it is not what it was.
        """
        records = []
        file = int(np.searchsorted(self._ends, start, "right"))
        while start < stop:
            file_end = int(self._ends[file])
            end, first = min(stop, file_end), int(self.firsts[file] + self.counts[file])
            first -= file_end - start
            if end > start:  # a file may be empty
                records += self._read(file, first, first + end - start)
            start, file = end, file + 1
        return records

    @cached_property
    def _token(self) -> object:
        """A mark of these files as they were opened: they may be written anew under their names."""
        return object()

    def _read(self, file: int, first: int, last: int) -> list[bytes | ValueError]:
        """Records of one file."""
        path, total = self.paths[file], int(self.totals[file])
        try:
            entry = _READERS.get((self._token, path))
        except ValueError as error:
            raise SourceError(f"{error}; it was one when it was counted, so put it back") from error
        if entry.total != total:
            raise SourceError(
                f"{path} has {entry.total} records and had {total} when they were counted; put it "
                "back, or delete the .counts.json beside it and run the same command again"
            )
        try:
            return list(_pieces(entry, path, first, last))
        except OSError:
            _READERS.drop((self._token, path))
            raise


@dataclass(frozen=True)
class RecordExamples(ABC):
    """Opened data whose examples are records; a subclass names them and makes examples of them.

    Attributes:
      files: the records.
      block_size: how many are read at once where blocks are read.
      remote: True where each read is a request to an object store.
    """

    files: RecordFiles
    block_size: int = 128
    remote: bool = False

    @abstractmethod
    def name(self, index: int) -> str:
        """A readable id of an example."""

    @abstractmethod
    def make(self, record: bytes, name: str) -> dict[str, Any]:
        """The example of a record.

        Raises:
          ValueError: the record cannot be used.
        """

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        return self.example(index, *self.files.read(index, index + 1))

    def read_block(self, block: int, /) -> Block:
        """The examples of a block, made of bytes in memory when they are taken."""
        first = block * self.block_size
        return Block(self, first, self.files.read(first, min(first + self.block_size, len(self))))

    def example(self, index: int, record: bytes | ValueError) -> dict[str, Any]:
        """The example of a record that was read, or the error that was met."""
        name = self.name(index)
        with naming(name):
            if isinstance(record, ValueError):
                raise record
            return self.make(record, name)


class Block(Sequence[dict[str, Any]]):
    """Examples of records in memory, made when they are taken."""

    def __init__(
        self, examples: RecordExamples, first: int, records: list[bytes | ValueError]
    ) -> None:
        self._examples, self._first, self._records = examples, first, records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any, /) -> Any:
        return self._examples.example(self._first + index, self._records[index])


@dataclass(frozen=True)
class _Reader:
    """An open file, its size in bytes, and how many records it has."""

    reader: Any
    size: int
    total: int


class _Readers:
    """Open readers of this process, closed by least use; a file in use stays open until read."""

    def __init__(self) -> None:
        self._lock, self._open = Lock(), OrderedDict[_Key, _Reader]()
        self._limit, self._records = 0, 0  # of files; in all of them

    def get(self, key: _Key) -> _Reader:
        """The reader of a file, opened if need be."""
        with self._lock:
            if key in self._open:
                self._open.move_to_end(key)
                return self._open[key]
            self._limit = self._limit or max(1, raise_file_limit() // 2)  # others open files too
        reader = self._opened(key[1])
        with self._lock:
            self._forget(key)  # another thread may have opened it, too
            self._open[key] = reader
            self._records += reader.total
            while len(self._open) > 1 and (
                len(self._open) > self._limit or self._records > _INDEXED_RECORDS
            ):
                self._forget(next(iter(self._open)))
        return reader

    def drop(self, key: _Key) -> None:
        """Forgets a reader that has failed."""
        with self._lock:
            self._forget(key)

    def _forget(self, key: _Key) -> None:
        if reader := self._open.pop(key, None):
            self._records -= reader.total

    def _opened(self, path: str) -> _Reader:
        """Opens a file, after closing others where no more can be open."""
        while True:
            try:
                reader = _open(path)
            except OSError as error:
                if error.errno not in _FULL or not self._shrink():
                    raise
                continue
            return _Reader(reader, os.stat(path).st_size, reader.num_records())

    def _shrink(self) -> bool:
        """Closes half of the files and keeps to that; False where none was open."""
        with self._lock:
            count = len(self._open)
            self._limit = max(1, count // 2)
            for key in list(self._open)[: count - count // 2]:
                self._forget(key)
            return count > 0


_READERS = _Readers()


def _open(path: str) -> Any:
    """A reader of a whole file."""
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(
        path, options="readahead_buffer_size:0", file_reader_buffer_size=32768
    )
    if reader.ok():
        return reader
    try:  # only reading says what is wrong
        reader.read([0])
    except RuntimeError as error:
        _raise_if_of_the_system(error, path)
        if git_lfs.is_pointer_file(path):
            raise ValueError(f"{path} is {git_lfs.POINTER}") from error
        raise ValueError(f"{path} is not a whole ArrayRecord file ({error})") from error
    raise ValueError(f"{path} is not a whole ArrayRecord file")


def _raise_if_of_the_system(error: RuntimeError, path: str) -> None:
    match = _SYSTEM_ERROR.search(str(error))
    if match and match[1] in _NUMBERS:
        raise OSError(_NUMBERS[match[1]], match[1], path) from error


def _pieces(entry: _Reader, path: str, first: int, last: int) -> Iterator[bytes | ValueError]:
    """Records of an open file; those around damage are read one by one."""
    try:
        records = entry.reader.read(first, last)
    except RuntimeError as error:
        _raise_if_of_the_system(error, path)
        problem = ValueError(f"the record is damaged ({error})")
        records = [problem] if last - first == 1 else None
    if records is None:
        for i in range(first, last):
            yield from _pieces(entry, path, i, i + 1)
        return
    if any(isinstance(record, ValueError) or not record for record in records):
        if os.stat(path).st_size < entry.size:
            raise SourceError(f"{path} has become shorter since it was opened; put it back")
    yield from records
