"""Writer of one file of embeddings: under a temporary name, which is its own once it is whole."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from etils import epath
from jaxtyping import Float

from siglip2_jax.data.items.item import Item
from siglip2_jax.inference.shards.manifest import Mark
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
        self._writer = ParquetWriter(
            self._local,
            columns,
            compression=dict.fromkeys(plain, "zstd") | {"embedding.list.element": "none"},
            use_dictionary=[name for name in texts if name not in ("id", "content")],
            write_statistics=plain,
        )
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
