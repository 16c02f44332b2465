"""Members of a tar: where the data of each lie, through links, joined archives and damage."""

from __future__ import annotations

import io
import os
import posixpath
import tarfile
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from siglip2_jax import git_lfs

Span = tuple[int, int]
_PIECE = 1 << 20


class Link(NamedTuple):
    """A link to the data of another member, which stands before it if the link is a hard one."""

    target: str
    hard: bool


class Entry(NamedTuple):
    """A header of a tar.

    Attributes:
      archive: number of the archive that it is in, as several may have been joined into one file.
      name: path in the archive.
      start: offset of the header, with those that only say more about it.
      stop: offset after its data, where the next one may begin.
      content: offset and size of its data in bytes, the member that has them, or None where they
        cannot be read as they lie.
      alone: whether it reads the same without what comes before it.
    """

    archive: int
    name: str
    start: int
    stop: int
    content: Span | Link | None
    alone: bool


class Member(NamedTuple):
    """A file in a tar.

    Attributes:
      archive: number of the archive that it is in, as several may have been joined into one file.
      name: path in the archive; bytes that are not UTF-8 are escapes.
      span: offset and size of its data in bytes; None where they cannot be read as they lie: those
        of a sparse file, of one that the end of the tar cuts, or of a link to nothing in the tar.
      start, stop: offset of its header, and of what follows it.
    """

    archive: int
    name: str
    span: Span | None
    start: int
    stop: int


def read_members(path: str) -> tuple[list[Member], str | None]:
    """Reads all headers of a tar.

    Returns:
      Its files and links to files, in order; and where and why it cannot be read to its end, or
      None for a whole one.

    Raises:
      ValueError: the file is no tar, or a compressed one.
      OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        entries, damage = read_entries(file, path, os.path.getsize(path))
    return resolve(entries), damage


def read_entries(file: io.BufferedIOBase, path: str, size: int) -> tuple[list[Entry], str | None]:
    """Reads all headers of a tar, but those of directories.

    Args:
      file: the tar.
      path: its name, for errors.
      size: of the tar, in bytes.

    Returns:
      The headers; and where and why the tar cannot be read to its end, or None for a whole one.

    Raises:
      ValueError: the file is no tar, or a compressed one.
      OSError: it cannot be read.
    """
    entries: list[Entry] = []
    try:
        for entry in _headers(file, path, size):
            entries.append(entry)
    except _Damage as error:
        if error.inside and entries:  # the last one's data may be those of something else
            entries[-1] = entries[-1]._replace(content=None)
        return entries, str(error)
    return entries, None


def resolve(entries: Iterable[Entry]) -> list[Member]:
    """The files that headers, in order, describe, and links to them."""
    contents: dict[str, Span | str | None] = {}  # by path; of those with the same, the last so far
    files = []
    for entry in entries:
        content = entry.content
        if isinstance(content, Link):
            content = contents.get(content.target) if content.hard else content.target
        contents[posixpath.normpath(entry.name)] = content
        files.append((entry, content))
    return [
        Member(entry.archive, _printable(entry.name), _follow(content, contents), *entry[2:4])
        for entry, content in files
    ]


class _Damage(Exception):
    """Error for a place in a tar that must hold a header and does not.

    Attributes:
      inside: whether it is in the middle of an archive.
    """

    def __init__(self, message: str, inside: bool) -> None:
        super().__init__(message)
        self.inside = inside


def _headers(file: io.BufferedIOBase, path: str, size: int) -> Iterator[Entry]:
    """Headers of all but directories.

    `tarfile` itself stops at the first end mark, and takes a damaged header for one.

    Raises:
      ValueError: the file is no tar.
      _Damage: it ends without an end mark, or holds something else.
    """
    try:
        tar = tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape")
    except tarfile.TarError as error:
        file.seek(0)
        if git_lfs.is_pointer(file.read(len(git_lfs.MARK))):
            raise ValueError(f"{path} is {git_lfs.POINTER}") from error
        raise ValueError(
            f"{path} is not an uncompressed tar ({error}); unpack a compressed one first"
        ) from error
    archive, position, inside = 0, 0, False
    while True:
        place = f"at byte {min(position, size)} of {size}"
        file.seek(position)
        block = file.read(tarfile.BLOCKSIZE)
        if len(block) < tarfile.BLOCKSIZE:
            raise _Damage(f"{place} (it has no end mark)", False)
        if not block.strip(tarfile.NUL):  # the end mark
            if (following := _after_zeros(file, position)) is None:
                return
            archive, position, inside = archive + 1, following, False
            tar.pax_headers = {}
            continue
        file.seek(position)
        try:
            header = tarfile.TarInfo.fromtarfile(tar)
        except (tarfile.HeaderError, ValueError) as error:
            raise _Damage(f"{place} ({error})", inside and not _is_header(block)) from error
        if tar.offset <= position:
            raise _Damage(f"{place} (negative size)", False)
        if not header.isdir():
            content, alone = _content(header, size), not tar.pax_headers
            yield Entry(archive, header.name, position, tar.offset, content, alone)
        position, inside = tar.offset, True


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _after_zeros(file: io.BufferedIOBase, position: int) -> int | None:
    """The first block from a position on that is not all zeros; None where there is none."""
    file.seek(position)
    while piece := file.read(_PIECE):
        if rest := piece.lstrip(tarfile.NUL):
            zeros = len(piece) - len(rest)
            return position + zeros - zeros % tarfile.BLOCKSIZE
        position += len(piece)
    return None


def _content(header: tarfile.TarInfo, size: int) -> Span | Link | None:
    if header.islnk():
        return Link(posixpath.normpath(header.linkname), True)
    if header.issym():
        folder = posixpath.dirname(header.name)
        return Link(posixpath.normpath(posixpath.join(folder, header.linkname)), False)
    whole = header.isreg() and header.sparse is None and header.offset_data + header.size <= size
    return (header.offset_data, header.size) if whole else None


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _follow(content: Span | str | None, contents: dict[str, Span | str | None]) -> Span | None:
    """The data that symbolic links lead to, which may come later in the tar."""
    for _ in range(40):  # as many as Linux follows
        if not isinstance(content, str):
            return content
        content = contents.get(content)
    return None
