"""Members of a tar: where the data of each lie, through links, joined archives and damage."""

from __future__ import annotations

import os
import posixpath
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from siglip2_jax import git_lfs

Span = tuple[int, int]
# Data of a member: in one piece, those of the member with a name, or out of reach.
_Content = Span | str | None
_PIECE = 1 << 20


class Member(NamedTuple):
    """A file in a tar.

    Attributes:
      archive: number of the archive that it is in, as several may have been joined into one file.
      name: path in the archive; bytes that are not UTF-8 are escapes.
      span: offset and size of its data in bytes; None where they cannot be read as they lie: those
        of a sparse file, of one that the end of the tar cuts, or of a link to nothing in the tar.
    """

    archive: int
    name: str
    span: Span | None


def read_members(path: str) -> tuple[list[Member], str | None]:
    """Reads all headers of a tar.

    Returns:
      Its files and links to files, in order; and where and why it cannot be read to its end, or
      None for a whole one.

    Raises:
      ValueError: the file is no tar, or a compressed one.
      OSError: it cannot be read.
    """
    size = os.path.getsize(path)
    entries: list[tuple[int, str, _Content]] = []
    contents: dict[str, _Content] = {}  # by path; of members with the same one, the last so far
    damage = None
    with open(path, "rb") as file:
        try:
            for archive, header in _headers(file, path, size):
                if not header.isdir():
                    content = _content(header, contents, size)
                    contents[posixpath.normpath(header.name)] = content
                    entries.append((archive, header.name, content))
        except _Damage as error:
            damage = str(error)
            if error.inside and entries:  # the last one's data may be those of something else
                archive, name, _ = entries.pop()
                contents[posixpath.normpath(name)] = None
                entries.append((archive, name, None))
    members = [
        Member(archive, _printable(name), _follow(content, contents))
        for archive, name, content in entries
    ]
    return members, damage


class _Damage(Exception):
    """Error for a place in a tar that must hold a header and does not.

    Attributes:
      inside: whether it is in the middle of an archive.
    """

    def __init__(self, message: str, inside: bool) -> None:
        super().__init__(message)
        self.inside = inside


def _headers(file: BinaryIO, path: str, size: int) -> Iterator[tuple[int, tarfile.TarInfo]]:
    """Headers with the numbers of their archives.

    `tarfile` itself stops at the first end mark, and takes a damaged header for one.

    Raises:
      ValueError: the file is no tar.
      _Damage: it ends without an end mark, or holds something else.
    """
    try:
        tar = tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape")
    except tarfile.TarError as error:
        if git_lfs.is_pointer_file(path):
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
        yield archive, header
        position, inside = tar.offset, True


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _after_zeros(file: BinaryIO, position: int) -> int | None:
    """The first block from a position on that is not all zeros; None where there is none."""
    file.seek(position)
    while piece := file.read(_PIECE):
        if rest := piece.lstrip(tarfile.NUL):
            zeros = len(piece) - len(rest)
            return position + zeros - zeros % tarfile.BLOCKSIZE
        position += len(piece)
    return None


def _content(header: tarfile.TarInfo, contents: dict[str, _Content], size: int) -> _Content:
    if header.islnk():  # to a member before it
        return contents.get(posixpath.normpath(header.linkname))
    if header.issym():
        folder = posixpath.dirname(header.name)
        return posixpath.normpath(posixpath.join(folder, header.linkname))
    whole = header.isreg() and header.sparse is None and header.offset_data + header.size <= size
    return (header.offset_data, header.size) if whole else None


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _follow(content: _Content, contents: dict[str, _Content]) -> Span | None:
    """The data that symbolic links lead to, which may come later in the tar."""
    for _ in range(40):  # as many as Linux follows
        if not isinstance(content, str):
            return content
        content = contents.get(content)
    return None
