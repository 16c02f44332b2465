"""Data in blocks, computed from numbers, that notes what is read."""

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.samples import picture

from siglip2_jax.data.example import ExampleError, SourceError

IMAGE = picture(0)


class Block(Sequence):
    """Examples of a block; counts the blocks that are alive."""

    alive = 0

    def __init__(self, numbers: range, bad: tuple[int, ...]) -> None:
        self._numbers, self._bad = numbers, bad
        Block.alive += 1

    def __del__(self) -> None:
        Block.alive -= 1

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index):
        number = self._numbers[index]
        if number in self._bad:
            raise ExampleError(f"no {number}: it is broken.", f"no {number}")
        return {"image": IMAGE, "captions": ("a text",), "name": f"no {number}", "id": number}


@dataclass(frozen=True)
class Blocks:
    """A source of `count` examples, some of which are bad.

    Each read adds a line with the block's number, and the process's, to the file `log`.
    """

    count: int
    block_size: int = 8
    remote: bool = True
    bad: tuple[int, ...] = ()
    log: str | None = None
    gone: int | None = None  # a block that cannot be read
    stale: str | None = None  # a file; each block is read at the second try, and named in it

    def open(self):
        return self

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, /) -> dict:
        return Block(range(self.count), self.bad)[index]

    def read_block(self, block: int, /) -> Block:
        if self.log:
            with open(self.log, "a") as file:
                file.write(f"{block} {os.getpid()}\n")
        if block == self.gone:
            raise SourceError(f"block {block} is gone.")
        if self.stale:
            path = Path(f"{self.stale}{block}")
            if not path.exists():
                path.touch()
                raise OSError(errno.ESTALE, "stale")
        start = block * self.block_size
        assert 0 <= start < self.count
        return Block(range(start, min(start + self.block_size, self.count)), self.bad)
