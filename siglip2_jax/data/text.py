"""Text as files hold it: decoded, cut into lines, read as rows of JSON."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from typing import Any

from etils import epath

from siglip2_jax import git_lfs


def plain_text(value: bytes | str) -> str:
    """Text without what files put around it: a byte-order mark, and the ends of its last lines.

    Args:
      value: bytes in UTF-8, or text that was decoded already.

    Raises:
      ValueError: the bytes are not UTF-8.
    """
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            problem = f"{error.reason} at byte {error.start}"
            raise ValueError(f"not text in UTF-8 ({problem}); save it as UTF-8") from error
    return value.removeprefix("\ufeff").rstrip("\r\n")


def parse_json(value: bytes | str) -> Any:
    """Parses JSON.

    Raises:
      ValueError: it is not JSON, nested too deeply to be read, or a Git LFS pointer.
    """
    if isinstance(value, bytes) and git_lfs.is_pointer(value):
        raise ValueError(git_lfs.POINTER)
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from error


def read_json(path: str | os.PathLike[str]) -> Any:
    """The value of a JSON file, local or `gs://`.

    Raises:
      ValueError: there is no such file, or it is not JSON in UTF-8.
    """
    file = epath.Path(path)
    if not file.is_file():
        raise ValueError(f"{path}: no such file; expected JSON")
    try:
        return parse_json(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a text file, local or `gs://`, that are not blank.

    Raises:
      FileNotFoundError: there is none.
      ValueError: a line is not text in UTF-8, or the file is a Git LFS pointer.
    """
    return [line for _, line in _lines(path)]


def read_rows(path: str | os.PathLike[str]) -> Iterator[tuple[int, Any]]:
    """The values of a file of JSON lines, local or `gs://`, each with its line's number.

    Raises:
      FileNotFoundError: there is none.
      ValueError: a line is not JSON in UTF-8.
    """
    for number, line in _lines(path):
        try:
            yield number, parse_json(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error


def _lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, each with its number, from 1 on."""
    return ((number, text) for number, text, _ in read_spans(path))


def read_spans(path: str | os.PathLike[str]) -> Iterator[tuple[int, str, tuple[int, int]]]:
    r"""Lines of a text file that are not blank, with their numbers and places in bytes.

    They end in `\n`, `\r\n` or `\r`. `str.splitlines` also cuts at eight characters that may stand
    within a line, U+2028 and the form feed among them.

    Yields:
      A line's number, from 1 on; its text; the offset and length of its bytes, in which a
      byte-order mark and the line's end may be.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a line is not text in UTF-8, or the file is a Git LFS pointer.
    """
    file = epath.Path(path)
    if not file.exists():  # a store's client would not say which
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
    with file.open("rb") as pieces:
        # Of bytes, splitlines knows the three ends alone.
        lines = (line for piece in pieces for line in piece.splitlines(keepends=True))
        end = 0
        for number, line in enumerate(lines, 1):
            start, end = end, end + len(line)
            if number == 1 and git_lfs.is_pointer(line):
                raise ValueError(f"{path}: it is {git_lfs.POINTER}")
            try:
                text = plain_text(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
            if text.strip():
                yield number, text, (start, len(line))
