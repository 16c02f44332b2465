"""Part of a manifest in the making: kept as it grows, so that a job that was stopped goes on."""

from __future__ import annotations

import time
from collections.abc import Sequence

from siglip2_jax.data.stores.manifest import Entry, entries, join
from siglip2_jax.data.stores.manifest_files import (
    About,
    Shard,
    decode_part,
    encode_part,
    part_path,
    parts_of,
)
from siglip2_jax.data.stores.store import File, Store, name_in
from siglip2_jax.fingerprint import fingerprint

_SECONDS = 60.0  # of work that a stop can cost


class ManifestJob:
    """Job that describes a share of the files of a data set.

    Args:
      folder: what the files are in.
      names: of all files, in order, relative to the folder.
      suffix: of the files.
      pattern: what they are called, relative to the folder.
      block_size: examples of a block.
      shard: the share.
      store: reads and writes.
      way_out: what to do where there is another manifest.

    Raises:
      ValueError: the folder has a manifest of other files, or in other parts.
    """

    def __init__(
        self,
        folder: str,
        names: Sequence[str],
        *,
        suffix: str,
        pattern: str,
        block_size: int,
        shard: Shard,
        store: Store,
        way_out: str,
    ) -> None:
        self._folder, self._store, self._way_out = folder, store, way_out
        self._about = About(suffix, pattern, len(names), fingerprint(list(names)), block_size)
        self._path = part_path(folder, shard)
        self._unfinished = self._path.removesuffix(".npz") + ".unfinished.npz"
        self._done: dict[str, Entry] = {}
        self._saved = time.monotonic()
        there = parts_of(folder, store)
        if there and there[0].path[-9:] != self._path[-9:]:
            raise ValueError(
                f"{folder} has a manifest in {int(there[0].path[-9:-4])} parts, not {shard.count}; "
                f"{way_out}"
            )
        for file in store.files(self._path.rpartition("/")[0]):
            if file.path in (self._path, self._unfinished):
                self._resume(file)
        self._finished = any(file.path == self._path for file in there)

    def _resume(self, file: File) -> None:
        manifest, about = decode_part(self._store.read(file), self._folder, file.path)
        if about != self._about:
            raise ValueError(
                f"{file.path} is of {about.files} files {about.pattern} in blocks of "
                f"{about.block_size}, not of these {self._about.files} {self._about.pattern} in "
                f"blocks of {self._about.block_size}; {self._way_out}"
            )
        for entry in entries(manifest):
            self._done[name_in(self._folder, entry.file.path)] = entry

    def knows(self, file: File) -> bool:
        """True if a file, as it is now, is described."""
        entry = self._done.get(name_in(self._folder, file.path))
        return entry is not None and not entry.file.differs(file)

    def has(self, name: str) -> bool:
        """True if a file with this name is described."""
        return name in self._done

    def add(self, entry: Entry, *, save: bool = False) -> None:
        """Takes the description of a file, and saves all now and then, or now."""
        self._done[name_in(self._folder, entry.file.path)] = entry
        self._finished = False
        if save or time.monotonic() - self._saved > _SECONDS:
            self._save(self._unfinished)

    def finish(self) -> list[Entry]:
        """Writes the part, and gives the descriptions in it, in order."""
        if not self._finished:
            self._save(self._path)
            self._store.remove(self._unfinished)
            self._finished = True
        return self._in_order()

    def _in_order(self) -> list[Entry]:
        return [self._done[name] for name in sorted(self._done)]

    def _save(self, path: str) -> None:
        manifest = join(self._folder, self._about.block_size, self._in_order())
        self._store.write(path, encode_part(manifest, self._about))
        self._saved = time.monotonic()
