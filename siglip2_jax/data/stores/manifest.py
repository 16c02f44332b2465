"""Manifest of a data set: its files, how many examples each holds, and where their blocks lie.

A block is some consecutive examples of a file. All files' whole blocks are numbered first; then
what is left at the end of each file, taken together, makes up the last blocks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt32

from siglip2_jax.data.stores.store import File, matches, name_in, path_in
from siglip2_jax.strings import Strings

BLOCK_SIZE = 128


class Spans(NamedTuple):
    """Examples whose data do not simply stand one after the other, as links in a tar make them.

    Attributes:
      keys: their names.
      spans: offset and size in bytes of each one's image, text and JSON; -1 where it has none.
    """

    keys: Strings
    spans: Int64[np.ndarray, "n 6"]


class Entry(NamedTuple):
    """A file of a data set.

    Attributes:
      file: its path, size and version.
      count: number of its examples.
      start: where its first block begins; of Parquet, where the footer does.
      lengths: bytes of each of its blocks, which stand together; of Parquet there are none.
      odd: those of its blocks that do not tell of themselves what is in them, by number.
      left_out: samples that are none of the examples.
    """

    file: File
    count: int
    start: int
    lengths: UInt32[np.ndarray, " blocks"]
    odd: dict[int, Spans]
    left_out: int = 0


class Piece(NamedTuple):
    """Consecutive examples of one block of a file: `first` up to, not including, `last`."""

    file: int
    first: int
    last: int


@dataclass(frozen=True, eq=False)
class Manifest:
    """Files of a data set, in the order of their names.

    Attributes:
      folder: what the names are relative to.
      block_size: examples of a whole block.
      names, versions: of the files.
      sizes, counts, starts, left_out: of the files, as an `Entry` has them.
      lengths: of the blocks of all files.
      odd: blocks that do not tell of themselves what is in them, by their number in `lengths`.
    """

    folder: str
    block_size: int
    names: Strings
    versions: Strings
    sizes: Int64[np.ndarray, " files"]
    counts: Int64[np.ndarray, " files"]
    starts: Int64[np.ndarray, " files"]
    lengths: UInt32[np.ndarray, " blocks"]
    odd: dict[int, Spans]
    left_out: Int64[np.ndarray, " files"]

    @cached_property
    def _whole(self) -> Int64[np.ndarray, " files"]:
        """Whole blocks up to the end of each file."""
        return np.cumsum(self.counts // self.block_size)

    @cached_property
    def _rests(self) -> Int64[np.ndarray, " files"]:
        """Examples that are left, up to the end of each file."""
        return np.cumsum(self.counts % self.block_size)

    @cached_property
    def _blocks(self) -> Int64[np.ndarray, " files"]:
        """Blocks and shorter ends, up to the end of each file."""
        return np.cumsum(-(-self.counts // self.block_size))

    def __len__(self) -> int:
        """Number of examples."""
        return int(self.counts.sum())

    def file(self, number: int) -> File:
        """The file with a number."""
        path = path_in(self.folder, self.names[number])
        return File(path, int(self.sizes[number]), self.versions[number])

    def pieces(self, block: int) -> list[Piece]:
        """The places of a block's examples: one, or several in what is left of the files."""
        size, whole = self.block_size, int(self._whole[-1])
        if block < whole:
            file = int(np.searchsorted(self._whole, block, "right"))
            first = size * (block - _before(self._whole, file))
            return [Piece(file, first, first + size)]
        position = size * (block - whole)
        end = min(position + size, int(self._rests[-1]))
        pieces = []
        while position < end:
            file = int(np.searchsorted(self._rests, position, "right"))
            last = min(end, int(self._rests[file]))
            shift = int(self.counts[file]) // size * size - _before(self._rests, file)
            pieces.append(Piece(file, position + shift, last + shift))
            position = last
        return pieces

    def place(self, index: int) -> tuple[int, int]:
        """The file of an example, and its number there."""
        block, offset = divmod(index, self.block_size)
        for file, first, last in self.pieces(block):
            if offset < last - first:
                return file, first + offset
            offset -= last - first
        raise IndexError(f"there is no example {index} among {len(self)}")

    def block_range(self, piece: Piece) -> tuple[int, int, int]:
        """Number among all blocks, and bytes from and to, of the block of a file a piece is in."""
        start, block = _before(self._blocks, piece.file), piece.first // self.block_size
        lengths = self.lengths[start : start + block + 1].astype(np.int64)
        end = int(self.starts[piece.file] + lengths.sum())
        return start + block, end - int(lengths[-1]), end

    def select(self, pattern: str) -> Manifest:
        """The files that a narrower pattern means.

        Raises:
          ValueError: there is none.
        """
        kept = np.array([matches(path_in(self.folder, name), pattern) for name in self.names])
        if kept.all():
            return self
        if not kept.any():
            raise ValueError(f"{pattern} matches none of the files of {self.folder}/manifest")
        blocks = np.repeat(kept, -(-self.counts // self.block_size))
        number = np.cumsum(blocks) - 1
        return dataclasses.replace(
            self,
            names=Strings.join(name for name, keep in zip(self.names, kept, strict=True) if keep),
            versions=Strings.join(x for x, keep in zip(self.versions, kept, strict=True) if keep),
            sizes=self.sizes[kept],
            counts=self.counts[kept],
            starts=self.starts[kept],
            left_out=self.left_out[kept],
            lengths=self.lengths[blocks] if len(self.lengths) else self.lengths,
            odd={int(number[i]): spans for i, spans in self.odd.items() if blocks[i]},
        )


def _before(ends: Int64[np.ndarray, " files"], file: int) -> int:
    return int(ends[file - 1]) if file else 0


def concatenate(parts: Sequence[Manifest]) -> Manifest:
    """The manifest of all files of several, of one folder."""
    odd, blocks = {}, 0
    for part in parts:
        odd |= {blocks + number: spans for number, spans in part.odd.items()}
        blocks += int(part._blocks[-1]) if len(part.counts) else 0
    return dataclasses.replace(
        parts[0],
        names=Strings.concatenate([part.names for part in parts]),
        versions=Strings.concatenate([part.versions for part in parts]),
        sizes=np.concatenate([part.sizes for part in parts]),
        counts=np.concatenate([part.counts for part in parts]),
        starts=np.concatenate([part.starts for part in parts]),
        lengths=np.concatenate([part.lengths for part in parts]),
        odd=odd,
        left_out=np.concatenate([part.left_out for part in parts]),
    )


def join(folder: str, block_size: int, entries: Sequence[Entry]) -> Manifest:
    """The manifest of some files, which are in order."""
    odd, blocks = {}, 0
    for entry in entries:
        odd |= {blocks + i: spans for i, spans in entry.odd.items()}
        blocks += -(-entry.count // block_size)
    return Manifest(
        folder,
        block_size,
        Strings.join(name_in(folder, entry.file.path) for entry in entries),
        Strings.join(entry.file.version for entry in entries),
        np.array([entry.file.size for entry in entries], np.int64),
        np.array([entry.count for entry in entries], np.int64),
        np.array([entry.start for entry in entries], np.int64),
        np.concatenate([np.zeros(0, np.uint32), *(entry.lengths for entry in entries)]),
        odd,
        np.array([entry.left_out for entry in entries], np.int64),
    )


def entries(manifest: Manifest) -> Iterator[Entry]:
    """The files of a manifest one by one."""
    for number, count in enumerate(manifest.counts.tolist()):
        end = int(manifest._blocks[number])
        start = _before(manifest._blocks, number)
        odd = {i - start: manifest.odd[i] for i in manifest.odd if start <= i < end}
        yield Entry(
            manifest.file(number),
            count,
            int(manifest.starts[number]),
            manifest.lengths[start:end],
            odd,
            int(manifest.left_out[number]),
        )
