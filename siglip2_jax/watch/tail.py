"""New lines of a growing file, local or `gs://`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from etils import epath


class Tail:
    """Lines of a file that is appended to, or replaced by another one."""

    def __init__(self, path: epath.Path):
        """Begins at the start of the file, which need not be there yet."""
        self._path = path
        self._identity: Any = None
        self._offset = 0

    def replaced(self) -> bool:
        """True where the file is another one than before, so that it is read from its start."""
        identity, size = _identify(self._path)
        same = identity == self._identity and size >= self._offset
        self._identity = identity
        if same or identity is None:
            return False
        read, self._offset = self._offset, 0
        return read > 0

    def lines(self) -> Iterator[bytes]:
        """Lines that are whole and were not read before; a last one without its end is not."""
        if self._identity is None:
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                yield line


def _identify(path: epath.Path) -> tuple[Any, int]:
    """A file's identity, which a renamed or uploaded one does not share, and its size.

    Without a file the identity is None.
    """
    try:
        if "://" in os.fspath(path):  # an object cannot be appended to: each is a new one
            stat = path.stat()
            return (stat.mtime, stat.length), stat.length
        local = os.stat(path)
        return local.st_ino, local.st_size
    except FileNotFoundError:
        return None, 0
