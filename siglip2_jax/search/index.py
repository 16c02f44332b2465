"""A database opened for search: by words, by images, by its own rows."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from siglip2_jax.inference.embedder import Embedder
from siglip2_jax.preprocess.decode import ImageSource
from siglip2_jax.progress import Update
from siglip2_jax.search.column import Column, open_column
from siglip2_jax.search.database import EXACT_UP_TO, Database
from siglip2_jax.search.duplicates import find_groups
from siglip2_jax.search.exact import Matches, scan, score
from siglip2_jax.search.hits import Hit, Results
from siglip2_jax.search.queries import read_queries
from siglip2_jax.search.rows import FIXED

DEFAULT_K = 10
QUERIES_AT_ONCE = 64  # of a pass over the column


class Index:
    """Images of a database, searchable: opened once, for any number of queries.

    Scores are cosines of the query with the stored float16 embeddings. Equal scores are ordered by
    id, so that results are the same on every run.

    Attributes:
      database: the rows and the settings that they were made with.
    """

    def __init__(self, database: Database, model: Embedder | None = None):
        """Opens what `Index.open` describes."""
        self.database = database
        self._model = model
        if model is not None:
            database.check_model(model)

    @classmethod
    def open(cls, database: str | os.PathLike[str], model: Embedder | str | None = None) -> Index:
        """Opens a database.

        Args:
          database: its folder, or its URI in an object store.
          model: embeds queries: a model, or where to load it from. None loads it, at the first
            query of words or images, from where it was loaded when the database was made.

        Raises:
          ValueError: there is no such database, or it was made with another model.
        """
        opened = Database.open(database)
        return cls(opened, opened.load_model(model) if isinstance(model, str) else model)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._column.rows)

    @property
    def model(self) -> Embedder:
        """The model that embeds queries."""
        if self._model is None:
            self._model = self.database.load_model()
            self.database.check_model(self._model)
        return self._model

    @functools.cached_property
    def _column(self) -> Column:
        return open_column(self.database.table, self.database.place.cache)

    @functools.cached_property
    def _by_row(self) -> Int64[np.ndarray, " n"]:
        """Places in the column in the order of the table's own row numbers."""
        return np.argsort(self._column.rows)

    def is_approximate(self, approximate: bool | None = None) -> bool:
        """Tells if a search would use the approximate index.

        Args:
          approximate: what the user asks for; None uses an index where there is one and the
            database is too large for a quick exact search.
        """
        if approximate is None:
            return len(self) > EXACT_UP_TO and self.database.partitions is not None
        if approximate and self.database.partitions is None:
            raise ValueError(
                f"{self.database.place.uri} has no approximate index; make one with `siglip2 index "
                f"{self.database.place.uri} --approximate`, or search exactly"
            )
        return approximate

    def search(
        self,
        texts: str | Sequence[str] = (),
        *,
        images: ImageSource | Iterable[ImageSource] = (),
        minus: str | Sequence[str] = (),
        k: int | None = None,
        threshold: float | None = None,
        where: str | None = None,
        approximate: bool | None = None,
    ) -> Results:
        """Searches for images by words and by images; each text and image is a query of its own.

        Args:
          texts: queries in words.
          images: queries as images: paths, bytes, PIL images or arrays.
          minus: words that every query is taken away from: its vector becomes the query's minus
            the mean of theirs, brought to unit length.
          k: how many images a query finds at most; None is 10, or all where there is a threshold.
          threshold: the lowest cosine that counts.
          where: a condition on columns, in SQL: `width > 800 AND caption LIKE '%boat%'`.
          approximate: True searches the approximate index, False exactly; see `is_approximate`.

        Returns:
          Each query, in words, with its hits, best first.

        Raises:
          ValueError: there is no query, one is empty, or the condition cannot be read.
          ImageError: an image cannot be read.
        """
        queries = read_queries(texts, images, minus)
        vectors = queries.embed(self.model, self.database.settings["patches"])
        hits = self.nearest(vectors, k=k, threshold=threshold, where=where, approximate=approximate)
        return list(zip(queries.names, hits, strict=True))

    def nearest(
        self,
        vectors: Float32[np.ndarray, "q E"],
        *,
        k: int | None = None,
        threshold: float | None = None,
        where: str | None = None,
        approximate: bool | None = None,
    ) -> list[list[Hit]]:
        """Searches by vectors of the model's embedding space; otherwise as `search`."""
        if k is None and threshold is None:
            k = DEFAULT_K
        matches = self._matches(vectors, k, threshold, where, self.is_approximate(approximate))
        return self._hits(matches)

    def neighbours(
        self,
        ids: str | Sequence[str],
        *,
        k: int | None = None,
        threshold: float | None = None,
        where: str | None = None,
    ) -> Results:
        """Searches by images of the database, which do not find themselves.

        Raises:
          ValueError: the database has no such id.
        """
        ids = [ids] if isinstance(ids, str) else list(ids)
        k = DEFAULT_K if k is None and threshold is None else k
        places = np.array([self._place(id_) for id_ in ids])
        vectors = self._column.embeddings[places].astype(np.float32)
        found = self._matches(vectors, None if k is None else k + 1, threshold, where)
        matches = [
            Matches(m.rows[m.rows != place][:k], m.scores[m.rows != place][:k])
            for m, place in zip(found, places, strict=True)
        ]
        return list(zip(ids, self._hits(matches), strict=True))

    def duplicates(
        self, threshold: float = 0.95, *, update: Update | None = None
    ) -> list[list[Hit]]:
        """Groups of near-duplicates: chains of pairs whose cosines reach a threshold.

        Time grows with the square of the number of images; memory does not.

        Args:
          threshold: the lowest cosine of a pair.
          update: told how far it is.

        Returns:
          The largest groups first, each in the order of ids; scores are cosines with the first.
        """
        groups = find_groups(self._column.embeddings, threshold, update=update)
        first = [self._column.embeddings[group[0]] for group in groups]
        return self._hits(
            [
                Matches(group, score(self._column.embeddings, vector, group))
                for group, vector in zip(groups, first, strict=True)
            ]
        )

    def _matches(
        self,
        vectors: Float32[np.ndarray, "q E"],
        k: int | None,
        threshold: float | None,
        where: str | None,
        approximate: bool = False,
    ) -> list[Matches]:
        rows = None if where is None else np.sort(self._places(self.database.select(where)))
        partitions = self.database.partitions if approximate else None
        search = scan if partitions is None else partitions.scan
        parts = [vectors[i : i + QUERIES_AT_ONCE] for i in range(0, len(vectors), QUERIES_AT_ONCE)]
        return [
            match
            for part in parts
            for match in search(self._column.embeddings, part, k=k, threshold=threshold, rows=rows)
        ]

    def _places(self, rows: np.ndarray) -> Int64[np.ndarray, " m"]:
        """Places in the column of the table's own row numbers."""
        order = self._by_row
        return order[np.searchsorted(self._column.rows, rows, sorter=order)]

    def _place(self, id_: str) -> int:
        rows = self._places(self.database.select(f"id = {quoted(id_)}"))
        if not len(rows):
            raise ValueError(
                f"{self.database.place.uri} holds no {id_!r}; give an id as a search prints it"
            )
        return int(rows.min())

    def _hits(self, matches: Sequence[Matches]) -> list[list[Hit]]:
        """Reads the rows of all matches at once."""
        places = np.unique(np.concatenate([np.zeros(0, np.int64), *(m.rows for m in matches)]))
        rows = self.database.take(self._column.rows[places])
        by_place: dict[int, dict[str, Any]] = dict(zip(places.tolist(), rows, strict=True))
        pairs = [zip(m.rows.tolist(), m.scores.tolist(), strict=True) for m in matches]
        return [[_hit(by_place[place], value) for place, value in some] for some in pairs]


def quoted(text: str) -> str:
    """A text as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"


def _hit(row: dict[str, Any], score: float) -> Hit:
    fields = {name: x for name, x in row.items() if name not in FIXED and x is not None}
    return Hit(row["id"], score, row["caption"], fields, row["width"], row["height"])
