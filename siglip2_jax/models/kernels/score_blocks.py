"""Blocks of scores that the attention kernel for short sequences works on, and their operands.

Operands lie in VMEM as the projections wrote them, heads side by side in the last dimension. Scores
are held transposed, keys along sublanes and queries along lanes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from siglip2_jax.models.kernels.products import LANES

_QUERIES = 256  # at a time: more would not fit the registers' spill space at 1,024 keys


@dataclasses.dataclass(frozen=True)
class Block:
    """Scores of some queries, [K, Q], or as many times Q columns as there are heads.

    Attributes:
      image: of those that the program holds.
      heads: whose scores stand side by side; several share one window of lanes.
      rows: queries of each head.
    """

    image: int
    heads: tuple[int, ...]
    rows: slice

    def columns(self) -> Iterator[tuple[int, slice]]:
        """Each head and its columns."""
        count = self.rows.stop - self.rows.start
        for i, head in enumerate(self.heads):
            yield head, slice(i * count, (i + 1) * count)


class Shape:
    """Sizes the kernels are made for.

    Attributes:
      queries: of an image.
      keys: of an image.
      length: of the sequences in what is called an image here, if there are several.
      size: C, of a head.
      heads: that a program takes: all where there are few scores; of long sequences as many as
        fill groups of lanes, which keeps programs short.
      groups: how many programs share the heads of an image.
      scale: of scores.
      log_sum: shape of the numbers kept for the backward pass.
    """

    def __init__(self, query: Any, key: Any, length: int | None):
        batch, self.queries, heads, self.size = query.shape
        self.keys, self.length = key.shape[1], length
        self.scale = self.size**-0.5
        together = math.lcm(self.size, LANES) // self.size
        self.groups = heads // together if self.queries > _QUERIES and not heads % together else 1
        self.heads = heads // self.groups
        self.log_sum = (batch, self.groups, self.heads, self.queries)

    @property
    def packed(self) -> bool:
        """True where gradients of queries, keys and values lie side by side in one array.

        Of one input, such an array is what its gradient is a single product of.
        """
        width = self.heads * self.size
        return self.groups == 1 and self.queries == self.keys and width % LANES == 0

    def blocks(self, images: int) -> Iterator[Block]:
        """Blocks of a program's scores: whole ones of each head, and what is left.

        Of heads that share lanes, queries that would leave half of a block's lanes empty stand
        side by side.
        """
        shared = LANES // self.size if LANES % self.size == 0 else 1
        left = self.queries % _QUERIES
        for image in range(images):
            for first in range(0, self.heads, shared):
                heads = tuple(range(first, min(first + shared, self.heads)))
                together = 1 < len(heads) <= LANES // max(left, 1) and self.length is None
                whole = self.queries - left if together else self.queries
                for head in heads:
                    for start in range(0, whole, _QUERIES):
                        yield Block(image, (head,), slice(start, min(start + _QUERIES, whole)))
                if whole < self.queries:
                    yield Block(image, heads, slice(whole, self.queries))

    def images(self, batch: int) -> int:
        """Number of images that a program takes: enough work to hide its start.

        A divisor of `batch`.
        """
        wanted = max(1, LANES * 2 // max(self.queries, self.keys))
        return next(i for i in range(min(wanted, batch), 0, -1) if batch % i == 0)


def read_all(ref: Any, block: Block, shape: Shape) -> Array:
    """All rows of an operand, in the lanes that hold a block's heads, perhaps with neighbours."""
    return ref[block.image, :, slice(*_window(block.heads[0], shape))]


def read_alone(ref: Any, block: Block, shape: Shape) -> Array:
    """A block's rows with zeros for neighbours, so that a product over lanes counts one head.

    Rows of several heads stand one below the other.
    """
    first, last = _window(block.heads[0], shape)
    window = ref[block.image, block.rows, first:last]
    if last - first == shape.size:
        return window
    lane = first + jax.lax.broadcasted_iota(jnp.int32, (1, last - first), 1)

    def alone(head: int) -> Array:
        in_head = (lane >= head * shape.size) & (lane < (head + 1) * shape.size)
        return jnp.where(in_head, window, jnp.zeros_like(window))

    return beside([alone(head) for head in block.heads], 0)


def read_rows(ref: Any, block: Block, shape: Shape) -> Array:
    """A block's rows for a product over them, of which only a head's own lanes are used.

    Of one head, its neighbours' lanes may then hold anything; of several, each counts its own.
    """
    if len(block.heads) == 1:
        return ref[block.image, block.rows, slice(*_window(block.heads[0], shape))]
    return read_alone(ref, block, shape)


def write(
    ref: Any, image: int, head: int, shape: Shape, window: Array, rows: slice = slice(None)
) -> None:
    """Writes a head, without its neighbours."""
    start = head * shape.size
    before = start - _window(head, shape)[0]
    head_values = window[:, before : before + shape.size]
    ref[image, rows, start : start + shape.size] = head_values.astype(ref.dtype)


def beside(parts: list[Array], axis: int) -> Array:
    """Arrays along one axis; a single one as it is."""
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis)


def _window(head: int, shape: Shape) -> tuple[int, int]:
    """Lanes to read for a head, from the first to behind the last.

    A head within a group of 128 lanes is read as that group, since moving it to the first lanes
    costs more than computing with its neighbour and leaving the result. Others are cut out.
    """
    start, stop = head * shape.size, (head + 1) * shape.size
    group = start // LANES * LANES
    if stop > group + LANES:
        return start, stop
    return group, min(group + LANES, shape.heads * shape.size)
