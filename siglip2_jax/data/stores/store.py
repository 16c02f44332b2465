"""Files, local or in `gs://` and `s3://` stores: listed, and read by ranges of bytes.

A file that is not what it was when it was listed is refused.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from etils import epath

from siglip2_jax.data.example import SourceError
from siglip2_jax.data.files import find_shards, read_at, select_files, suggest_glob
from siglip2_jax.data.patience import of_file
from siglip2_jax.data.stores.client import CHANGED, Client, count
from siglip2_jax.outputs import write_whole

_LARGEST_REQUEST = 1 << 26
_GAP = 1 << 19  # bytes that are read for nothing rather than with another request
_PAGE = 1000  # names that a store lists in one request
_TIME = "mtime "
_BESIDE = {".json", ".jsonl", ".npz"}


@dataclass(frozen=True)
class File:
    """A file or object as it was when it was listed.

    Attributes:
      path: local, `gs://` or `s3://`.
      size: in bytes.
      version: `mtime` and a number of nanoseconds, or a store's tag; empty where the size alone
        is compared.
    """

    path: str
    size: int
    version: str

    def differs(self, now: File) -> bool:
        """True for other content; a copy elsewhere may have another kind of version."""
        same_kind = self.version.startswith(_TIME) == now.version.startswith(_TIME)
        other_version = self.version and same_kind and self.version != now.version
        return self.size != now.size or bool(other_version)

    def check(self, now: File) -> None:
        """Refuses a file with other content.

        Raises:
          SourceError: the file is another one now.
        """
        if self.differs(now):
            raise SourceError(f"{self.path} {CHANGED}")


def set_patience(opened: object, patience: float) -> None:
    """Sets for how many seconds opened data goes on asking its store, if it has one."""
    if isinstance(store := getattr(opened, "store", None), Store):
        store.client.patience = patience


def is_remote(path: str) -> bool:
    """True for what is in an object store."""
    return path.startswith(("gs://", "s3://"))


class Store:
    """Reader of files by ranges, local and remote; picklable, used from any thread.

    Attributes:
      client: makes the requests; its `patience` may be set.
    """

    def __init__(self, client: Client | None = None) -> None:
        self.client = client or Client()

    def list(self, pattern: str, suffix: str) -> list[File]:
        """The files with a suffix that a path, a directory or a glob means, sorted by path.

        Raises:
          ValueError: there is none.
          SourceError: the store cannot be read.
        """
        if not is_remote(pattern):
            return [self.stat(path) for path in find_shards(pattern, suffix)]
        if "**" in pattern:
            raise ValueError(f"{pattern}: ** is not read in stores; name the directory instead")
        if pattern.endswith(suffix) and not glob.has_magic(pattern):
            return [self.stat(pattern)]
        folder = fixed_folder(pattern)
        files = {file.path: file for file in self._walk(folder, glob.has_magic(pattern))}
        paths = [path for path in files if folder == pattern.rstrip("/") or matches(path, pattern)]
        if not (paths := select_files(pattern, paths, {suffix}, _BESIDE)):
            raise ValueError(
                f"{pattern} matches no object; expected a {suffix} file, a directory of them or a "
                f"glob{suggest_glob(pattern)}"
            )
        return [files[path] for path in paths]

    def files(self, folder: str) -> list[File]:
        """The files in a directory; none where there is no directory."""
        if is_remote(folder):
            return list(self._walk(folder, False))
        if not os.path.isdir(folder):
            return []
        paths = (path_in(folder, name) for name in os.listdir(folder))
        return [self.stat(path) for path in paths if os.path.isfile(path)]

    def stat(self, path: str) -> File:
        """Size and version of a file.

        Raises:
          SourceError: it is not there, or cannot be read.
        """
        if is_remote(path):
            return _object(path, self.client.request(path, _head))
        try:
            return _local(path, os.stat(path))
        except FileNotFoundError as error:
            raise SourceError(f"{path}: there is no such file") from error

    def read(self, file: File, start: int = 0, stop: int | None = None) -> bytes:
        """The bytes of a file from `start` up to, not including, `stop`; None is its end.

        Raises:
          SourceError: it has changed since it was listed, is not there, or cannot be read.
        """
        stop = file.size if stop is None else stop
        if not is_remote(file.path):
            return _read_local(file, start, stop)
        pieces = range(start, stop, _LARGEST_REQUEST)
        return b"".join(
            self._read_object(file, first, min(first + _LARGEST_REQUEST, stop)) for first in pieces
        )

    def read_ranges(
        self, file: File, ranges: Sequence[tuple[int, int]]
    ) -> dict[tuple[int, int], bytes]:
        """Several ranges of a file, in order; those that stand close together with one request.

        Raises:
          SourceError: as `read`.
        """
        pieces: dict[tuple[int, int], bytes] = {}
        for group in _close_together(ranges):
            start = group[0][0]
            data = self.read(file, start, max(stop for _, stop in group))
            pieces |= {span: data[span[0] - start : span[1] - start] for span in group}
        return pieces

    def write(self, path: str, data: bytes) -> None:
        """Writes a file whole.

        Raises:
          OSError: it cannot be written.
        """
        if path.startswith("s3://"):
            self.client.request(path, lambda bucket, key: _put(bucket, key, data))
        else:
            write_whole(path, data)

    def remove(self, path: str) -> None:
        """Removes a file, if it is there."""
        if path.startswith("s3://"):
            self.client.request(path, _delete)
        else:
            epath.Path(path).unlink(missing_ok=True)

    def _read_object(self, file: File, start: int, stop: int) -> bytes:
        def ask(bucket: Any, key: str) -> bytes:
            from obstore import get

            answer = get(bucket, key, options={"range": (start, stop)})
            file.check(_object(file.path, answer.meta))
            return bytes(answer.bytes())

        data = self.client.request(file.path, ask)
        count(size=len(data))
        return data

    def _walk(self, folder: str, deep: bool) -> Iterator[File]:
        """Objects in a folder of a store, or below it to any depth."""
        objects = self.client.request(folder, _list_all if deep else _list_folder)
        count(requests=len(objects) // _PAGE)
        bucket = "/".join(folder.split("/")[:3])
        return (_object(f"{bucket}/{meta['path']}", meta) for meta in objects)


def fixed_folder(pattern: str) -> str:
    """The deepest folder that everything a directory or glob means is in."""
    parts = pattern.rstrip("/").split("/")
    magic = [i for i, part in enumerate(parts) if glob.has_magic(part)]
    return "/".join(parts[: magic[0]] if magic else parts) or "."


def path_in(folder: str, name: str) -> str:
    """The path of a file in a folder."""
    return name if folder == "." else f"{folder}/{name}"


def name_in(folder: str, path: str) -> str:
    """The path of a file relative to a folder that it is in."""
    return path.removeprefix(f"{folder}/")


def matches(path: str, pattern: str) -> bool:
    """True for a path that a glob means; `*` stays within a folder."""
    parts, wanted = path.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _close_together(ranges: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    groups: list[list[tuple[int, int]]] = []
    end = 0
    for start, stop in ranges:
        if not groups or start > end + _GAP:
            groups.append([])
        groups[-1].append((start, stop))
        end = max(end, stop)
    return groups


def _head(bucket: Any, key: str) -> Any:
    from obstore import head

    return head(bucket, key)


def _put(bucket: Any, key: str, data: bytes) -> None:
    from obstore import put

    put(bucket, key, data)


def _delete(bucket: Any, key: str) -> None:
    from obstore import delete

    delete(bucket, key)


def _list_folder(bucket: Any, key: str) -> list[Any]:
    from obstore import list_with_delimiter

    return list(list_with_delimiter(bucket, key)["objects"])


def _list_all(bucket: Any, key: str) -> list[Any]:
    from obstore import list as list_all

    return [meta for page in list_all(bucket, key, chunk_size=_PAGE) for meta in page]


def _object(path: str, meta: Any) -> File:
    return File(path, meta["size"], (meta["e_tag"] or "").strip('"'))


def _local(path: str, stat: os.stat_result) -> File:
    return File(path, stat.st_size, f"{_TIME}{stat.st_mtime_ns}")


def _read_local(file: File, start: int, stop: int) -> bytes:
    with of_file(file.path), open(file.path, "rb", buffering=0) as stream:
        file.check(_local(file.path, os.fstat(stream.fileno())))
        data = read_at(stream.fileno(), start, stop - start)
        if len(data) < stop - start:
            raise SourceError(f"{file.path} {CHANGED}")
    return data
