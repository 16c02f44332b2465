"""Writer of files of embeddings: each under a temporary name, until it is whole."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath
from jaxtyping import Float

from siglip2_jax.data.items.item import Item, Shard
from siglip2_jax.inference.shards.manifest import Mark, file_name
from siglip2_jax.inference.shards.schema import table

if TYPE_CHECKING:
    import pyarrow

TEMPORARY = ".tmp"
_GROUP = 4096  # rows that are held until they are written, as one row group
_COPIED = 1 << 24


class ShardFile:
    """File of embeddings that is being written; nothing is under its name until it is whole.

    Attributes:
      rows: items so far.
      errors: those of them that have no embedding.
    """

    def __init__(self, path: epath.Path, columns: pyarrow.Schema) -> None:
        """Begins a file.

        Args:
          path: the file, local or `gs://`; its directory exists.
          columns: what it holds.
        """
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter

        self._path, self._columns = path, columns
        # Of two processes that are told to write the same file, each writes one of its own.
        self._temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}{TEMPORARY}")
        self._folder = tempfile.TemporaryDirectory() if "://" in str(path) else None
        folder = self._temporary.parent if self._folder is None else self._folder.name
        self._local = Path(folder) / self._temporary.name
        texts = [column.name for column in columns if pa.types.is_string(column.type)]
        plain = [name for name in columns.names if name != "embedding"]
        options: dict[str, Any] = {
            "compression": dict.fromkeys(plain, "zstd") | {"embedding.list.element": "none"},
            "use_dictionary": [name for name in texts if name not in ("id", "content")],
            "write_statistics": plain,
        }
        self._writer = ParquetWriter(self._local, columns, **options)
        self._items: list[Item] = []
        self._pending: list[np.ndarray] = []
        self.rows = self.errors = 0

    def add(self, items: Sequence[Item], rows: Float[np.ndarray, "n E"]) -> None:
        """Takes items and their embeddings; rows of items with an error do not count."""
        self._items += items
        self._pending.append(rows)
        self.rows += len(items)
        self.errors += sum(item.error is not None for item in items)
        if len(self._items) >= _GROUP:
            self._flush()

    def finish(self, mark: Mark) -> None:
        """Ends the file, with its mark in the footer, and puts it under its name."""
        try:
            self._flush()
            self._writer.add_key_value_metadata(mark.encode())
            self._writer.close()
            if self._folder is not None:
                with self._local.open("rb") as content, self._temporary.open("wb") as file:
                    shutil.copyfileobj(content, file, _COPIED)
            self._temporary.replace(self._path)
        finally:
            self.discard()

    def discard(self) -> None:
        """Removes what is not under its name yet."""
        self._writer.close()
        if self._folder is None:
            self._local.unlink(missing_ok=True)
        else:
            self._folder.cleanup()

    def _flush(self) -> None:
        if self._items:
            rows = np.concatenate(self._pending)
            self._writer.write_table(table(self._items, rows, self._columns))
            self._items, self._pending = [], []


class ShardFiles:
    """Files of some shards, one after the other; a shard without an image gets an empty one.

    A context manager: an error removes the file that is not whole.
    """

    def __init__(
        self,
        folder: epath.Path,
        columns: pyarrow.Schema,
        settings: str,
        shards: Mapping[int, Shard],
    ) -> None:
        """Writes nothing yet.

        Args:
          folder: the directory of the files.
          columns: what each holds.
          settings: digest of the run's settings.
          shards: the shards by their numbers, in the order in which they come.
        """
        self._folder, self._columns, self._settings = folder, columns, settings
        self._shards = list(shards.items())
        self._place, self._file = -1, None

    def add(self, place: int, items: Sequence[Item], rows: Float[np.ndarray, "n E"]) -> None:
        """Takes items of the shard at a place in the order, and their embeddings."""
        self._go_to(place).add(items, rows)

    def end(self) -> None:
        """Writes what is left."""
        if self._shards:
            self._go_to(len(self._shards) - 1)
            self._finish()

    def _go_to(self, place: int) -> ShardFile:
        while self._place < place:
            self._finish()
            self._place += 1
            _, shard = self._shards[self._place]
            self._file = ShardFile(self._folder / file_name(shard), self._columns)
        assert self._file is not None
        return self._file

    def _finish(self) -> None:
        if (file := self._file) is not None:
            number, shard = self._shards[self._place]
            file.finish(Mark(self._settings, number, shard.fingerprint, file.rows, file.errors))
            self._file = None

    def __enter__(self) -> ShardFiles:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.discard()
