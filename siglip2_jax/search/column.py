"""Embeddings of a database as one memory-mapped float16 file, which exact search reads.

Derived from one version of the table and named by it. Rows stand in the order of their ids (of
UTF-8 bytes, then of content), so that equal scores are ordered by their places.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float16, UInt64

_NAME = re.compile(r"column-(\d+)(?:\.(\d+)\.tmp)?")


class Column(NamedTuple):
    """Embeddings of all rows of one version.

    Attributes:
      embeddings: of unit length, memory-mapped, in the order of ids.
      rows: the table's own number of each row, by which the rest of it is read.
    """

    embeddings: Float16[np.ndarray, "n E"]
    rows: UInt64[np.ndarray, " n"]


def open_column(table: Any, cache: Path) -> Column:
    """Maps the column of the version that a table is at, and makes it first where it is missing.

    Args:
      table: LanceDB's.
      cache: the folder of columns. Those of other versions are removed when one is made.

    Raises:
      OSError: the folder cannot be written.
    """
    directory = cache / f"column-{table.version}"
    if not directory.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with _replacing(directory) as temporary:
            _write(table, temporary)
        _tidy(cache, table.version)
    return Column(
        np.load(directory / "embeddings.npy", mmap_mode="r"),
        np.load(directory / "rows.npy", mmap_mode="r"),
    )


def _write(table: Any, directory: Path) -> None:
    keys = table.search().select(["id", "content"]).with_row_id(True).to_arrow()
    order = keys.sort_by([("id", "ascending"), ("content", "ascending")])
    rows = order["_rowid"].to_numpy().astype(np.uint64)
    np.save(directory / "rows.npy", rows)
    by_row = np.argsort(rows)
    width = table.schema.field("embedding").type.list_size
    embeddings = np.lib.format.open_memmap(
        directory / "embeddings.npy", "w+", np.float16, (len(rows), width)
    )
    for batch in table.search().select(["embedding"]).with_row_id(True).to_batches():
        vectors = batch["embedding"].flatten().to_numpy(zero_copy_only=True).reshape(-1, width)
        numbers = batch["_rowid"].to_numpy().astype(np.uint64)
        embeddings[by_row[np.searchsorted(rows, numbers, sorter=by_row)]] = vectors
    embeddings.flush()


@contextmanager
def _replacing(directory: Path) -> Iterator[Path]:
    """Gives a temporary folder, which becomes `directory` unless that is there by then."""
    temporary = directory.with_name(f"{directory.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        with suppress(FileExistsError):  # another reader was as quick
            try:
                temporary.rename(directory)
            except OSError:
                if not directory.is_dir():
                    raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _tidy(cache: Path, version: int) -> None:
    """Removes columns of other versions, and what processes that are gone have left."""
    for path in cache.iterdir():
        if match := _NAME.fullmatch(path.name):
            stale = int(match[1]) != version if match[2] is None else not _runs(int(match[2]))
            if stale:
                shutil.rmtree(path, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
