"""Examples by a manifest: read in blocks, of which those last used are held."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from siglip2_jax.data.held import Held
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
        self._held = Held[Items](_HELD)

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        block, offset = divmod(index, self.block_size)
        return self._held.get(block, partial(self.read_block, block))[offset]

    def read_block(self, block: int, /) -> Items:
        """The examples of a block; raises what `Blocked` says."""
        return Items([make for piece in self.manifest.pieces(block) for make in self._read(piece)])

    @abstractmethod
    def _read(self, piece: Piece) -> list[Make]:
        """Reads the examples of a piece into memory; they are made later.

        Raises:
          SourceError: they cannot be read.
        """
