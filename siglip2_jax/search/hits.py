"""Results of a search, as they are printed and drawn."""

from __future__ import annotations

from typing import Any, NamedTuple


class Hit(NamedTuple):
    """One image that a query has found.

    Attributes:
      id: the item: a path, or a path with a key or row.
      score: cosine between the query and the image.
      caption: the item's caption, if it has one.
      fields: metadata columns, by name.
      width: pixels of the image as it is seen.
      height: likewise.
    """

    id: str
    score: float
    caption: str | None
    fields: dict[str, Any]
    width: int
    height: int


Results = list[tuple[str, list[Hit]]]
"""Each query, in words, with its hits: best first."""
