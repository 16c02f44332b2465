"""Reading and preparing items: pieces of work for threads or processes (`workers`)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np

from siglip2_jax.data.example import ExampleError, naming
from siglip2_jax.data.held import Held
from siglip2_jax.data.items.decode import decode_item
from siglip2_jax.data.items.item import Columns, Item, Shard
from siglip2_jax.data.items.known import Known
from siglip2_jax.data.patience import PATIENCE, patiently
from siglip2_jax.data.sources import Blocked, Described, Examples
from siglip2_jax.data.stores import client
from siglip2_jax.data.stores.store import set_patience
from siglip2_jax.data.workers.ring import batch_bytes
from siglip2_jax.data.workers.work import Outcome
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.preprocess.patches import ImagePatches, write_padded
from siglip2_jax.types import Patches

Take = Callable[[int], dict[str, Any]]  # an example by its number in its source
_HELD = 8  # open shards: those of the batches that are prepared, and those opened ahead


class Step(NamedTuple):
    """One batch of a shard.

    Attributes:
      shard: number of the shard.
      name: of the shard.
      first: number of the batch's first item in the shard.
      count: of its items.
      total: items of the shard.
      start: number of the shard's first example in its source.
      block: examples that are read at once; 0 where each is read by itself.
      problem: the reason why the shard cannot be opened, as its only item.
    """

    shard: int
    name: str
    first: int
    count: int
    total: int
    start: int = 0
    block: int = 0
    problem: str | None = None


class Opened:
    """Open sources of shards and their blocks, of which those last used are held; thread-safe."""

    def __init__(self, shards: Sequence[Shard], patience: float, blocks: int) -> None:
        """Sources of `shards`, and `blocks` blocks of them at most."""
        self.shards, self._patience = shards, patience
        self._held = Held[Examples](_HELD)
        self._blocks = Held[Any](blocks)

    def get(self, number: int) -> Examples:
        """The source of a shard, opened.

        Raises:
          ValueError: what is to be opened is missing or malformed.
          SourceError: it cannot be read.
        """
        shard = self.shards[number]
        # Ranges of one source share it; files are a source each.
        key = number if shard.last is None else shard.source
        return self._held.get(key, partial(self._open, shard))

    def block(self, number: int, block: int, examples: Blocked) -> Any:
        """A block of the source of a shard; raises what `Blocked` says."""
        return self._blocks.get((number, block), partial(examples.read_block, block))

    def _open(self, shard: Shard) -> Examples:
        examples = patiently(shard.source.open, shard.name, self._patience)
        set_patience(examples, self._patience)
        return examples


@dataclass(frozen=True)
class ItemWork:
    """All batches of shards, as `workers.work.Work`; their keys are `Step`s.

    Attributes:
      opened: the shards.
      preprocess: how images become patches.
      columns: what to keep of examples.
      max_num_patches: patches an image may have.
      batch_size: items of a whole batch.
      piece: items of a piece of work, at most.
      block_piece: the same where they are read in blocks.
      threads: of each worker.
      scaled_decode: whether large JPEGs may be decoded at a smaller scale.
      known: contents that need no decoding.
      patience: seconds that reading goes on trying what may pass.
      pixels: the dtype of patches.
    """

    opened: Opened
    preprocess: ImagePreprocessor
    columns: Columns
    max_num_patches: int
    batch_size: int
    piece: int
    block_piece: int
    threads: int
    scaled_decode: bool = False
    known: Known | None = None
    patience: float = PATIENCE
    pixels: str = "float32"

    def measure(self, number: int) -> Step:
        """A whole shard as one step; opens it."""
        shard = self.opened.shards[number]
        try:
            examples = self.opened.get(number)
        except ValueError as error:
            return Step(number, shard.name, 0, 1, 1, problem=str(error))
        total = len(range(len(examples))[shard.first : shard.last])
        block = examples.block_size if isinstance(examples, Blocked) else 0
        return Step(number, shard.name, 0, total, total, shard.first, block)

    def batches(self, shard: Step) -> Iterator[Step]:
        """The batches of a shard."""
        for first in range(0, shard.total, self.batch_size):
            yield shard._replace(first=first, count=min(self.batch_size, shard.total - first))

    @cached_property
    def _row(self) -> Patches:
        """A blank image."""
        tokens = self.preprocess.num_tokens(self.max_num_patches)
        return Patches(
            pixels=np.zeros((1, tokens, self.preprocess.patch_size**2 * 3), self.pixels),
            yx=np.zeros((1, tokens, 2), np.int32),
            valid=np.zeros((1, tokens), np.bool_),
        )

    def buffer_bytes(self) -> int:
        """Memory of a whole batch."""
        return batch_bytes(self._row, self.batch_size)

    def like(self, step: Step, /) -> tuple[Patches, int]:
        """A blank row, and how many a batch has."""
        return self._row, step.count

    def parts(self, step: Step, /) -> int:
        """Number of pieces of a batch."""
        return len(list(self._pieces(step)))

    def owner(self, step: Step, part: int, /) -> int:
        """Number of the worker of a piece: as far as possible one for all pieces of a block."""
        first = list(self._pieces(step))[part].start + step.first + step.start
        size = self.block_piece if step.block else self.piece
        block, offset = divmod(first, step.block or size)
        number = block * -(-(step.block or size) // size) + offset // size
        return step.shard + number // self.threads

    def _pieces(self, step: Step) -> Iterator[range]:
        """Rows of the pieces, none of which has examples of two blocks."""
        size = self.block_piece if step.block else self.piece
        row = 0
        while row < step.count:
            offset = (step.start + step.first + row) % (step.block or size)
            room = min(size - offset % size, (step.block or size) - offset)
            yield range(row, min(row + room, step.count))
            row += room

    def fill(self, step: Step, part: int, out: Patches, /) -> Outcome:
        """Prepares the items of a piece, each in its row."""
        rows, items = list(self._pieces(step))[part], []
        first = step.start + step.first + rows[0]
        take = None if step.problem is not None else self._taker(step, first)
        for row in rows:
            item, patches = self._bad(step.name, step.problem), None
            if take is not None:
                item, patches = self._item(step, step.first + row, take)
            items.append(item)
            if patches is None:
                for array in (out.pixels, out.yx, out.valid):
                    assert isinstance(array, np.ndarray)
                    array[row] = 0
            else:
                write_padded(patches, out, row)
        return Outcome(0, (), client.take(), tuple(items))

    def _taker(self, step: Step, index: int) -> Take:
        """Reader of the examples of a piece that begins at an index, one by one or in a block."""
        examples: Any = self.opened.get(step.shard)
        if not step.block:
            return examples.__getitem__
        number = index // step.block
        read = partial(self.opened.block, step.shard, number, examples)
        block = patiently(read, f"{step.name}[{index - step.start}]", self.patience)
        return lambda index: block[index - number * step.block]

    def _item(self, step: Step, number: int, take: Take) -> tuple[Item, ImagePatches | None]:
        """An item, and its patches if it is to be embedded."""
        index, name = step.start + number, f"{step.name}[{number}]"

        def read() -> dict[str, Any]:
            with naming(name):
                return take(index)

        try:
            example = patiently(read, name, self.patience)
        except ExampleError as error:
            return self._described(step.shard, index, error.name or name, str(error)), None
        item, data = self._about(example), example["image"]
        if self.known is not None and item.content in self.known:
            return item._replace(known=True), None
        try:
            size, patches = decode_item(
                data, example["name"], self.preprocess, self.max_num_patches, self.scaled_decode
            )
        except ValueError as error:
            return item._replace(error=str(error)), None
        return item._replace(width=size[0], height=size[1]), patches

    def _about(self, example: dict[str, Any]) -> Item:
        """All of an item but its size."""
        name, data, captions = (example[key] for key in ("name", "image", "captions"))
        given = None if self.columns.id is None else example.get(self.columns.id)
        return Item(
            name if given is None else str(given),
            hashlib.blake2b(data, digest_size=16).hexdigest() if data else "",
            0,
            0,
            captions[0] if captions else None,
            {field: _plain(example.get(field)) for field in self.columns.fields},
        )

    def _described(self, shard: int, index: int, name: str, error: str) -> Item:
        """An item whose image cannot be read, with all that its source tells without it."""
        examples = self.opened.get(shard)
        if isinstance(examples, Described):
            with suppress(ValueError):
                return self._about(examples.without_image(index))._replace(error=error)
        return self._bad(name, error)

    def _bad(self, name: str, error: str | None) -> Item:
        return Item(name, "", 0, 0, None, dict.fromkeys(self.columns.fields), error)


def _plain(value: Any) -> Any:
    """A value without NumPy."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
