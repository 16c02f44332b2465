"""Blocks of webdataset tars by a manifest: each is one range of bytes, parsed in memory."""

from __future__ import annotations

import bisect
import io
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Int64

from siglip2_jax.data.example import SourceError
from siglip2_jax.data.stores.block_reader import BlockReader, Make
from siglip2_jax.data.stores.client import CHANGED
from siglip2_jax.data.stores.file import StoreFile
from siglip2_jax.data.stores.manifest import Entry, Manifest, Piece, Spans
from siglip2_jax.data.stores.store import File, Store, is_remote
from siglip2_jax.data.tar.index import TarIndex, index_tar, make_index
from siglip2_jax.data.tar.members import read_entries, resolve
from siglip2_jax.data.tar.samples import TarExamples, make_sample

_AHEAD = 1 << 24


def index_blocks(file: File, store: Store, block_size: int) -> tuple[Entry, TarIndex]:
    """Finds the samples of a tar and its blocks; a remote one is read from end to end.

    Raises:
      ValueError: the file is no tar, or a compressed one.
      SourceError: it cannot be read.
    """
    stream = StoreFile(file, store, ahead=_AHEAD) if is_remote(file.path) else open(file.path, "rb")
    with stream:
        headers, damage = read_entries(stream, file.path, file.size)
    index, places = make_index(file.path, resolve(headers), damage)
    firsts = range(0, len(index), block_size)
    starts = [int(places[first, 0]) for first in firsts]
    stops = [*starts[1:], min(int(places[-1, 1]), file.size)] if starts else []
    positions = [header.start for header in headers]
    odd = {}
    for number, (first, start, stop) in enumerate(zip(firsts, starts, stops, strict=True)):
        keys = [index.keys[i] for i in range(first, min(first + block_size, len(index)))]
        spans = index.spans[first : first + block_size]
        # What the bytes of the block tell by themselves, as `TarBlocks` reads them.
        inside = headers[bisect.bisect_left(positions, start) : bisect.bisect_left(positions, stop)]
        alone, _ = make_index(file.path, resolve(inside), None)
        same = list(alone.keys) == keys and np.array_equal(alone.spans, spans)
        if not same or not all(header.alone for header in inside):
            odd[number] = Spans(index.keys.join(keys), spans)
    lengths = np.diff([*starts, *stops[-1:]])
    if lengths.size and lengths.max() >= 2**32:
        raise ValueError(f"{file.path}: {block_size} samples have 4 GiB or more; pack it anew")
    start = starts[0] if starts else 0
    count, left_out = len(index), index.left_out
    return Entry(file, count, start, lengths.astype(np.uint32), odd, left_out), index


class TarBlocks(BlockReader):
    """Examples of tars with a manifest. Those of local tars can be read one by one as well."""

    def __init__(self, manifest: Manifest, store: Store) -> None:
        super().__init__(manifest, store)
        self.remote = is_remote(manifest.folder)
        self._told: set[str] = set()  # tars of which one half-broken sample was logged
        self._tars: dict[int, TarExamples] = {}

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        if self.remote:
            return super().__getitem__(index)
        number, sample = self.manifest.place(index)
        if number not in self._tars:
            file = self.manifest.file(number)
            self._tars[number] = TarExamples([index_tar(file.path)])
            if len(self._tars[number]) != self.manifest.counts[number]:
                raise SourceError(f"{file.path} {CHANGED}")
        return self._tars[number][sample]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tars": {}}

    def _read(self, piece: Piece) -> list[Make]:
        file = self.manifest.file(piece.file)
        number, start, stop = self.manifest.block_range(piece)
        first = piece.first // self.block_size * self.block_size
        kept = range(piece.first - first, piece.last - first)
        if number in self.manifest.odd:
            keys, spans = self.manifest.odd[number]
            files = self._read_spans(file, spans[kept.start : kept.stop])
        else:
            data = self.store.read(file, start, stop)
            try:
                headers, damage = read_entries(io.BytesIO(data), file.path, len(data))
            except ValueError as error:
                raise SourceError(f"{file.path} {CHANGED}") from error
            index, _ = make_index(file.path, resolve(headers), damage)
            if len(index) < kept.stop:
                raise SourceError(f"{file.path} {CHANGED}")
            keys, spans = index.keys, index.spans[kept.start : kept.stop]
            files = [[_cut(data, *span) for span in sample] for sample in _pairs(spans)]
        names = [f"{file.path}:{keys[i]}" for i in kept]
        return [
            partial(make_sample, file.path, name, its_files, self._told)
            for name, its_files in zip(names, files, strict=True)
        ]

    def _read_spans(self, file: File, spans: Int64[np.ndarray, "n 6"]) -> list[list[bytes | None]]:
        """Image, text and JSON of samples that lie anywhere."""
        wanted = {(at, at + size) for sample in _pairs(spans) for at, size in sample if at >= 0}
        pieces = self.store.read_ranges(file, sorted(wanted))
        return [[pieces.get((at, at + size)) for at, size in sample] for sample in _pairs(spans)]


def _pairs(spans: Int64[np.ndarray, "n 6"]) -> list[list[list[int]]]:
    return spans.reshape(-1, 3, 2).tolist()


def _cut(data: bytes, offset: int, size: int) -> bytes | None:
    return data[offset : offset + size] if offset >= 0 else None
