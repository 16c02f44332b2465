"""Writer of a database: rows are added in commits, each whole or not there at all."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from siglip2_jax.demo import shipped_examples
from siglip2_jax.inference.embedder import Embedder
from siglip2_jax.search.approximate import LEAST_RECALL, SAMPLE, build
from siglip2_jax.search.column import open_column
from siglip2_jax.search.database import EXACT_UP_TO, PARTITIONS, TABLE, claim, write_settings
from siglip2_jax.search.place import Place
from siglip2_jax.search.rows import columns, complete

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_PER_COMMIT, SECONDS_PER_COMMIT = 8192, 10.0
COMMITS_PER_COMPACTION = 50
KEPT = datetime.timedelta(hours=1)
"""Age of the oldest version that stays: readers that have it open go on with it."""

_CONTENTS_AT_ONCE = 2000  # of a condition


class Writer:
    """The one writer of a database, made by `writing`.

    Attributes:
      place: where the database is.
      table: LanceDB's table of rows.
      settings: what its rows are made with.
    """

    def __init__(self, place: Place, settings: dict[str, Any]):
        self.place, self.settings = place, settings
        connection = place.connect()
        try:
            self.table = connection.open_table(TABLE)
        except (ValueError, FileNotFoundError):
            self.table = connection.create_table(TABLE, schema=columns(settings["width"], {}))
        self._waiting: list[pa.Table] = []
        self._rows, self._since, self._commits = 0, time.monotonic(), 0

    def add(self, rows: pa.Table) -> None:
        """Takes rows, which are committed when there are enough or enough time has passed."""
        self._waiting.append(rows)
        self._rows += len(rows)
        if self._rows >= ROWS_PER_COMMIT or time.monotonic() - self._since > SECONDS_PER_COMMIT:
            self.commit()

    def commit(self) -> None:
        """Writes all rows taken so far: after this they stay, whatever happens."""
        import pyarrow as pa

        if self._waiting:
            new = pa.concat_tables(self._waiting, promote_options="default")
            if added := [
                field for field in new.schema if field.name not in self.table.schema.names
            ]:
                self.table.add_columns(added)
            self.table.add(complete(new, self.table.schema))
            self._commits += 1
        self._waiting, self._rows, self._since = [], 0, time.monotonic()
        if self._commits >= COMMITS_PER_COMPACTION:
            self.compact()

    def remove(self, contents: Sequence[str]) -> None:
        """Removes the rows of some contents."""
        for start in range(0, len(contents), _CONTENTS_AT_ONCE):
            listed = ", ".join(f"'{x}'" for x in contents[start : start + _CONTENTS_AT_ONCE])
            self.table.delete(f"content IN ({listed})")

    def change_ids(self, ids: Mapping[str, str]) -> None:
        """Gives rows other ids, by their contents: their images have moved."""
        import pyarrow as pa

        if ids:
            new = pa.table({"content": list(ids), "id": list(ids.values())})
            self.table.merge_insert("content").when_matched_update_all().execute(new)

    def compact(self) -> None:
        """Joins the small files of many commits, and removes versions that are no longer read."""
        self.table.optimize(cleanup_older_than=KEPT)
        self._commits = 0

    def finish(self, index: bool = False, model: Embedder | None = None) -> None:
        """Compacts, sees to the approximate index, and writes the column of exact search.

        Args:
          index: make an approximate index. One that is there is made anew in any case, and so is
            one of very many rows.
          model: embeds captions to measure the index on; None measures it on images alone.

        Raises:
          ValueError: the index finds too little, and is removed; or there are too few rows.
        """
        self.commit()
        self.compact()
        column = open_column(self.table, self.place.cache).embeddings
        if not (index or len(column) > EXACT_UP_TO or self.settings.get("recall_at_10")):
            return
        partitions = build(column, self.table.version, None if model is None else _captions(model))
        good = partitions.recall >= LEAST_RECALL
        if good:
            self.place.write(PARTITIONS, partitions.encode())
        self.settings = {
            **self.settings,
            "recall_at_10": round(partitions.recall, 4) if good else None,
        }
        write_settings(self.place, self.settings)
        if not good:
            raise ValueError(
                f"an approximate index of {self.place.uri} finds {partitions.recall:.1%} of the 10 "
                f"nearest images, expected at least {LEAST_RECALL:.0%}; there is none, and search "
                "stays exact"
            )


@contextmanager
def writing(place: Place, settings: dict[str, Any]) -> Iterator[Writer]:
    """Opens a database for writing, or makes it; this process is then its only writer.

    Args:
      place: where it is.
      settings: what the rows are made with.

    Raises:
      ValueError: it was made with other settings, or another process is writing.
    """
    with place.lock():
        writer = Writer(place, claim(place, settings))
        try:
            yield writer
        except BaseException:
            with suppress(Exception):  # what went wrong first is what is said
                writer.commit()
            raise


def _captions(model: Embedder) -> Float32[np.ndarray, "t E"] | None:
    """Captions of the shipped images, embedded: queries in words as people write them."""
    if model.tokenizer is None:
        return None
    captions = [caption for example in shipped_examples() for caption in example.captions]
    return model.embed_texts(captions[:SAMPLE])
