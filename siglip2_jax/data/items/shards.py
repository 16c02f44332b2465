"""Shards as a sequence that makes each when it is asked for: memory is that of the paths."""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol, runtime_checkable

from siglip2_jax.data.image_files import ImageFiles
from siglip2_jax.data.items.item import Shard
from siglip2_jax.data.sources import Source
from siglip2_jax.strings import Strings

ROWS = 10_000  # items of a shard, where they are not cut by files
_ODD = re.compile(r"[^\w.-]+", re.ASCII)
_LONGEST = 80  # characters of a name that are kept


@runtime_checkable
class Group(Protocol):
    """Shards of one kind."""

    def __len__(self) -> int:
        """Number of shards."""
        ...

    def shard(self, number: int, /) -> Shard:
        """A shard, whose name is that of its file or folder."""
        ...


@dataclass(frozen=True, eq=False)
class ImageGroup:
    """Images by their paths, so many in each shard."""

    name: str
    paths: Strings

    def __len__(self) -> int:
        return -(-len(self.paths) // ROWS)

    def shard(self, number: int, /) -> Shard:
        """A part of the files."""
        paths = self.paths.part(number * ROWS, min((number + 1) * ROWS, len(self.paths)))
        return Shard(self.name, ImageFiles(paths), files=paths)


@dataclass(frozen=True, eq=False)
class FileGroup:
    """Files that are a shard each.

    Attributes:
      paths: of the files.
      source: makes the source of a path; picklable.
      versions: of files in a store.
    """

    paths: Strings
    source: Callable[[str], Source]
    versions: Strings | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def shard(self, number: int, /) -> Shard:
        """A whole file."""
        path = self.paths[number]
        name = os.path.basename(path)
        if self.versions is not None:
            return Shard(name, self.source(path), version=self.versions[number])
        return Shard(name, self.source(path), files=(path,))


@dataclass(frozen=True, eq=False)
class RowGroup:
    """Examples of one source, `rows` in each shard."""

    name: str
    source: Source
    total: int
    rows: int
    files: tuple[str, ...] = ()
    version: str = ""

    def __len__(self) -> int:
        return -(-self.total // self.rows)

    def shard(self, number: int, /) -> Shard:
        """A range of the examples."""
        first = number * self.rows
        last = min(first + self.rows, self.total)
        return Shard(self.name, self.source, first, last, self.files, self.version)


class Groups:
    """Several groups as one."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self._groups = groups
        self._ends = list(accumulate(map(len, groups)))

    def __len__(self) -> int:
        return self._ends[-1]

    def shard(self, number: int, /) -> Shard:
        """A shard of one of the groups."""
        group = bisect_right(self._ends, number)
        return self._groups[group].shard(number - (self._ends[group - 1] if group else 0))


class Shards(Sequence[Shard]):
    """All shards of a run, in order, each with its number in its name. Picklable."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self._groups = Groups(groups)

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(len(self))[number]]
        number = range(len(self))[number]
        shard = self._groups.shard(number)
        name = _ODD.sub("-", os.path.splitext(shard.name)[0])[-_LONGEST:].strip("-")
        return shard.named(f"{number:06d}-{name}" if name else f"{number:06d}")
