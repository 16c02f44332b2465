"""Folder or object-store URI that holds a database: its small files, its lock, its cache."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from siglip2_jax.cache_files import user_cache
from siglip2_jax.fingerprint import fingerprint_bytes
from siglip2_jax.outputs import write_whole

WAY_OUT = "pip install 'siglip2_jax[search]'"


class Place:
    """Location of a database.

    Attributes:
      uri: a path, or a URI of a store such as `gs://`, `s3://` or `file://`.
    """

    def __init__(self, uri: str | os.PathLike[str]):
        self.uri = os.fspath(uri).rstrip("/") or "/"

    @property
    def folder(self) -> Path | None:
        """The folder on this machine; None in a store."""
        if "://" not in self.uri:
            return Path(self.uri)
        scheme, _, path = self.uri.partition("://")
        return Path(path) if scheme == "file" else None

    @property
    def cache(self) -> Path:
        """A folder on this machine for what is derived: in the database, or the user's cache."""
        if self.folder is not None:
            return self.folder / "cache"
        return user_cache("search") / fingerprint_bytes(self.uri.encode())

    def connect(self) -> Any:
        """Connects LanceDB.

        Raises:
          ValueError: the extra is not installed.
        """
        try:
            import lancedb  # takes seconds
        except ImportError as error:
            raise ValueError(
                f"a database needs the extra `search` ({error}); install it with: {WAY_OUT}"
            ) from error
        return lancedb.connect(self.uri)

    def read(self, name: str) -> bytes | None:
        """Reads a small file; None where there is none."""
        try:
            if "://" not in self.uri:
                return Path(self.uri, name).read_bytes()
            system, path = self._store()
            with system.open_input_stream(f"{path}/{name}") as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, content: bytes) -> None:
        """Writes a small file: whole or not at all."""
        if self.folder is not None:
            write_whole(self.folder / name, content)
            return
        system, path = self._store()
        with system.open_output_stream(f"{path}/{name}") as file:  # an object appears when closed
            file.write(content)

    def _store(self) -> tuple[Any, str]:
        from pyarrow import fs

        return fs.FileSystem.from_uri(self.uri)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Makes this process the only writer; ends with the process, however that ends.

        In a store nothing is locked: there the user sees to it that one process writes.

        Raises:
          ValueError: another process is writing.
        """
        if self.folder is None:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise ValueError(
                    f"{self.uri} is being written by process {file.read().strip() or 'unknown'}, "
                    "and takes one writer at a time; run the command again when that has ended"
                ) from None
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield
