"""File of a store as an open file of Python, for readers that take one."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping

from siglip2_jax.data.stores.store import File, Store


class StoreFile(io.BufferedIOBase):
    """A file that is read by ranges.

    Args:
      file: the file.
      store: reads it.
      ranges: what has been read of it; from and to which byte.
      ahead: bytes that are read at once of what has not.
    """

    def __init__(
        self,
        file: File,
        store: Store,
        ranges: Mapping[tuple[int, int], bytes] | None = None,
        ahead: int = 0,
    ) -> None:
        self._file, self._store, self._ahead = file, store, ahead
        self._ranges = ranges or {}
        self._position, self._last = 0, (0, b"")

    def seekable(self) -> bool:
        """True."""
        return True

    def readable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Sets the position."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._file.size}
        self._position = base[whence] + offset
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes, as many as are wanted or there are."""
        start, end = self._position, self._file.size
        stop = end if size < 0 else min(end, start + size)
        if stop <= start:
            return b""
        self._position = stop
        at, data = self._holding(start, stop)
        return data[start - at : stop - at]

    def _holding(self, start: int, stop: int) -> tuple[int, bytes]:
        """A range around what is wanted, and where it begins; read where there is none."""
        for (first, last), data in self._ranges.items():
            if first <= start and stop <= last:
                return first, data
        at, data = self._last
        if not at <= start <= stop <= at + len(data):
            ahead = min(self._file.size, max(stop, start + self._ahead))
            self._last = start, self._store.read(self._file, start, ahead)
        return self._last
