"""Output files: all of one appears under its name, or nothing does; local or `gs://`.

Symbolic links stay: the file behind them is replaced. What is no regular file (a pipe, a device, a
descriptor of this process such as `/dev/stdout`) is written into as it is.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

from etils import epath

_CLIENTS = {"gcsfs", "google", "aiohttp"}
_DESCRIPTOR = re.compile(r"/(?:dev|proc/self|proc/thread-self)/fd/(\d+)")


@contextmanager
def open_output(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Opens a file for writing, which appears under its name when the block ends without an error.

    The directory is made if need be.

    Args:
      path: the file, local or `gs://`.

    Raises:
      OSError: the file cannot be written.
    """
    target = behind_links(path)
    if is_special(target):
        try:
            with _open_special(target) as file:
                yield file
        except BrokenPipeError as error:
            raise OSError(f"{path}: its reader has closed it") from error
        return
    check_output(target)
    if _is_local(target):  # a bucket has no directories, and would be asked for them
        target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary, temporary.open("wb") as file:
        yield file


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes a file in one step; text in UTF-8.

    Bytes of file names that are no UTF-8, which Python keeps as lone surrogates, are written as
    escapes (`\\udcff`), as JSON has them.

    Raises:
      OSError: as `open_output`.
    """
    if isinstance(content, str):
        content = content.encode("utf-8", "backslashreplace")
    with open_output(path) as file:
        file.write(content)


def write_once(path: str | os.PathLike[str], content: str | bytes) -> bool:
    """Writes a file in one step; False where another process has just done so.

    In a store, and on a file system without links, the last one stays.

    Raises:
      OSError: as `open_output`.
    """
    target = epath.Path(path)
    temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex}")
    write_whole(temporary, content)
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    except OSError:
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return True


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[epath.Path]:
    """Gives a temporary path beside `path`, which is renamed to it unless there is an error.

    Args:
      path: a regular file, which may be a link or not exist, local or `gs://`.
    """
    target = behind_links(path)
    temporary = target.with_name(target.name + ".tmp")
    try:
        with _in_store(target):
            yield temporary
            temporary.replace(target)
    except BaseException as error:
        if _is_local(target) or not names_no_file(error):  # a lost store would be waited for again
            with suppress(Exception):  # what went wrong first is what is said
                temporary.unlink(missing_ok=True)
        raise


@contextmanager
def staged(path: str | os.PathLike[str], overwrite: bool) -> Iterator[epath.Path]:
    """Gives a path beside a file or directory to write, renamed to it unless there is an error.

    A pipe or a device is written to as it is.

    Args:
      path: a local path that does not exist yet, or an empty directory.
      overwrite: replace what is there.

    Raises:
      FileExistsError: there is something at `path`.
    """
    target = behind_links(path)
    if is_special(target):
        yield target
        return
    occupied = target.exists() and not (target.is_dir() and not any(target.iterdir()))
    if occupied and not overwrite:
        raise FileExistsError(f"{target} exists: choose another path, or ask to overwrite it")
    target.parent.mkdir(parents=True, exist_ok=True)
    staging, old = (target.parent / f".{target.name}.{os.getpid()}.{tag}" for tag in ("new", "old"))
    try:
        yield staging
        if target.exists():
            target.rename(old)
        try:
            staging.rename(target)
        except BaseException:
            if old.exists():
                old.rename(target)
            raise
        _remove(old)
    finally:
        _remove(staging)


def _remove(path: epath.Path) -> None:
    if path.is_dir():
        path.rmtree()
    path.unlink(missing_ok=True)


def behind_links(path: str | os.PathLike[str]) -> epath.Path:
    """The file that a path is a symbolic link to, over any number of links; else the path.

    Raises:
      OSError: the links go in a circle.
    """
    target = epath.Path(path)
    if not _is_local(target):
        return target
    _mode(target)
    while os.path.islink(target) and not _DESCRIPTOR.fullmatch(str(target)):
        target = target.parent / os.readlink(target)
    return target


def is_special(path: epath.Path) -> bool:
    """Tells pipes, devices and descriptors from files, directories and what is not there."""
    if not _is_local(path):
        return False
    if _DESCRIPTOR.fullmatch(str(path)):
        return True
    mode = _mode(path)
    return mode is not None and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def check_output(path: str | os.PathLike[str]) -> None:
    """Refuses a path that no file can be written to, before the work whose result it is for.

    Raises:
      OSError: it is a directory, or may not be written.
    """
    target = behind_links(path)
    if not _is_local(target) or is_special(target):
        return
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a directory, expected a file", str(path))
    folder = target.parent
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def _open_special(path: epath.Path) -> IO[bytes]:
    """Opens a pipe, a device or a descriptor for writing.

    A descriptor is shared, as opening its path once more would start at the file's beginning.
    """
    if descriptor := _DESCRIPTOR.fullmatch(str(path)):
        sys.stdout.flush()
        return os.fdopen(os.dup(int(descriptor[1])), "wb")
    return open(path, "wb")


def names_no_file(error: BaseException) -> bool:
    """True for errors of files and stores, or their clients, that name no path."""
    nameless = isinstance(error, OSError) and error.filename is None
    return nameless or type(error).__module__.partition(".")[0] in _CLIENTS


@contextmanager
def _in_store(path: epath.Path) -> Iterator[None]:
    """Turns the errors of a store's client, which has kinds of its own, into one with the path."""
    try:
        yield
    except Exception as error:
        if _is_local(path) or not names_no_file(error):
            raise
        raise OSError(f"{path} cannot be written: {error}") from error


def _is_local(path: epath.Path) -> bool:
    return "://" not in os.fspath(path)


def _mode(path: epath.Path) -> int | None:
    """The kind of the file that a path leads to; None where there is none."""
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
