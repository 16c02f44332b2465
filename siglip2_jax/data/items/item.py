"""Items to embed and the shards they come in: what readers give and consumers see."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from siglip2_jax.data.sources import Source
from siglip2_jax.fingerprint import fingerprint, stamp_file
from siglip2_jax.types import Patches


class Columns(NamedTuple):
    """Names of the columns or fields of a source; None stands for the usual names.

    Attributes:
      image: the image, or its path in a table of paths.
      caption: the caption; where it is None and no column has a usual name, there are no captions.
      id: the id of an item; None makes it of the file, or of its file and its key or row in it.
      fields: further columns to keep.
    """

    image: str | None = None
    caption: str | None = None
    id: str | None = None
    fields: tuple[str, ...] = ()


USUAL = Columns()


@dataclass(frozen=True)
class Shard:
    """Part of what is to be embedded that is done as a whole; cheap and picklable.

    Attributes:
      name: unique in its run, and fit for the name of a file; it begins with the shard's number.
      source: a source that has its examples.
      first, last: the examples of the opened source; None is their end.
      files: those that decide its content.
      version: of what is in a store.
    """

    name: str
    source: Source
    first: int = 0
    last: int | None = None
    files: Iterable[str] = ()
    version: str = ""

    def named(self, name: str) -> Shard:
        """The same shard with another name."""
        return replace(self, name=name)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of what decides the content: options, range, sizes and times; no content is read.

        Files are looked at when it is first asked for.
        """
        stamps = [stamp_file(path) for path in self.files]
        return fingerprint([repr(self.source), self.first, self.last, self.version, stamps])


class Item(NamedTuple):
    """One image to embed.

    Attributes:
      id: a path, a path with a key or row in it, or the value of the id's column.
      content: BLAKE2b digest of the encoded bytes, 32 hex digits; empty where there are none.
      width, height: of the image as it is seen, in pixels; 0 where it was not decoded.
      caption: the first caption, if there is any.
      fields: the columns to keep; None for those that it lacks.
      error: the reason why it cannot be embedded; None for a good one.
      known: whether it was not decoded because its content is known.
    """

    id: str
    content: str
    width: int
    height: int
    caption: str | None
    fields: dict[str, Any]
    error: str | None = None
    known: bool = False


class ItemBatch(NamedTuple):
    """Consecutive items of one shard.

    Attributes:
      shard: number of the shard among those that are read.
      first: number of the first item in its shard.
      total: items of the whole shard.
      items: what they are.
      patches: row i belongs to `items[i]`; rows of items with an error, and of known ones, are
        blank (all padding).
    """

    shard: int
    first: int
    total: int
    items: list[Item]
    patches: Patches
