"""Examples by a manifest: read in blocks, of which those last used are held."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Lock
from typing import Any

from siglip2_jax.data.stores.manifest import Manifest, Piece
from siglip2_jax.data.stores.store import Store

_HELD = 4  # blocks, for readers that take examples one by one
Make = Callable[[], dict[str, Any]]


class Items(Sequence):
    """Examples that are made as they are taken."""

    def __init__(self, makers: list[Make]) -> None:
        self._makers = makers

    def __len__(self) -> int:
        return len(self._makers)

    def __getitem__(self, index):
        return self._makers[index]()


class BlockReader(ABC):
    """Opened data with a manifest, `Blocked`; picklable, read from any thread.

    Attributes:
      manifest: its files and blocks.
      store: reads them.
      block_size: examples of a block.
      left_out: samples of the files that are none of the examples.
    """

    def __init__(self, manifest: Manifest, store: Store) -> None:
        self.manifest, self.store = manifest, store
        self.block_size, self.left_out = manifest.block_size, int(manifest.left_out.sum())
        self._begin()

    def _begin(self) -> None:
        self._lock, self._held = Lock(), OrderedDict[int, Future[Items]]()

    def __getstate__(self) -> dict[str, Any]:
        return {name: x for name, x in self.__dict__.items() if name not in ("_lock", "_held")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self._begin()

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        block, offset = divmod(index, self.block_size)
        return self._block(block)[offset]

    def read_block(self, block: int, /) -> Items:
        """The examples of a block; raises what `Blocked` says."""
        return Items([make for piece in self.manifest.pieces(block) for make in self._read(piece)])

    @abstractmethod
    def _read(self, piece: Piece) -> list[Make]:
        """Reads the examples of a piece into memory; they are made later.

        Raises:
          SourceError: they cannot be read.
        """

    def _block(self, block: int) -> Items:
        """A block that is held, or read by one of the threads that want it."""
        with self._lock:
            if waiting := block in self._held:
                self._held.move_to_end(block)
            future = self._held.setdefault(block, Future())
            if len(self._held) > _HELD:
                self._held.popitem(last=False)
        if not waiting:
            try:
                future.set_result(self.read_block(block))
            except BaseException as error:
                with self._lock:
                    self._held.pop(block, None)
                future.set_exception(error)
        return future.result()
