"""Order in which blocks of examples are read: arithmetic on integers, no arrays.

Blocks, runs of examples that stand together, are permuted in each epoch and dealt to lanes; a few
blocks of a lane are a window, within which its examples are permuted. A batch takes the next few
examples of every lane. So a block is needed within a short time and in one lane only, and hosts
that have some of the lanes each need not read the blocks of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

# 2**32 times the golden ratio: multiples of it spread evenly over any stretch of lanes.
_GOLDEN = 0x9E3779B1


# Rounds of a permutation, and what its round function multiplies with (of splitmix64).
_ROUNDS = 6
_FACTOR = 0xBF58476D1CE4E5B9
_MASK = 2**64 - 1


@lru_cache(2**14)
def _draw(*entropy: int) -> tuple[int, ...]:
    """Numbers below 2**64 at random, one for each round."""
    return tuple(np.random.SeedSequence(entropy).generate_state(_ROUNDS, np.uint64).tolist())


def permuted(index: int, count: int, *entropy: int) -> int:
    """Index that a random permutation of `range(count)` sends an index to.

    A Feistel network on the next power of 4, repeated until it is below the count.
    """
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    low, keys = 2**half - 1, _draw(*entropy)
    while True:
        left, right = index >> half, index & low
        for key in keys:
            mixed = (right ^ key) * _FACTOR & _MASK
            left, right = right, left ^ (mixed ^ mixed >> 29) * _FACTOR >> 32 & low
        index = left << half | right
        if index < count:
            return index


@dataclass(frozen=True)
class BlockOrder:
    """The order of one source, without end: (lane, key) to an example, key 0, 1, 2, … in each lane.

    An epoch's blocks are all the examples but a remainder of less than a block, and another one in
    each epoch: the examples after the last whole block take the places of as many others, drawn
    from one block. If there is less than a block for each lane, blocks are cut into smaller ones,
    down to single examples.

    Attributes:
      num_examples: N, at least 1.
      block_size: examples that are read at once.
      lanes: L.
      window: blocks of a lane that are permuted together, at most; fewer where an epoch has fewer.
      seed: of all that is drawn.
    """

    num_examples: int
    block_size: int
    lanes: int
    window: int
    seed: int

    @cached_property
    def size(self) -> int:
        """Examples of a block of the order, a divisor of `block_size`."""
        size = self.block_size
        while self.num_examples < size * self.lanes and size > 1:
            size = next(d for d in range(size - 1, 0, -1) if self.block_size % d == 0)
        return size

    @cached_property
    def blocks(self) -> int:
        """Blocks of an epoch."""
        return self.num_examples // self.size

    @cached_property
    def width(self) -> int:
        """Blocks of a window."""
        return min(self.window, max(1, self.blocks // self.lanes))

    def window_of(self, lane: int, key: int) -> range:
        """The keys of the window that a key is in.

        The first window of a lane is shorter, by another amount in each lane: so the lanes do not
        all come to a new window at once.
        """
        whole = self.width * self.size
        late = (lane * _GOLDEN % 2**32 * self.width >> 32) * self.size
        start = (key + late) // whole * whole - late
        return range(max(0, start), start + whole)

    def example(self, lane: int, key: int) -> int:
        """Number of an example in its source."""
        turn, offset = divmod(self._shuffled(lane, key), self.size)
        epoch, block = self._block(lane, turn)
        if self._tail and block == self._giver(epoch):
            place = permuted(offset, self.size, self.seed, 3, epoch)
            if place < self._tail:
                return self.blocks * self.size + place
        return block * self.size + offset

    def needs(self, lane: int, key: int) -> dict[int, int]:
        """Blocks of the source that a key's window has left to read, each with its first key."""
        keys = self.window_of(lane, key)
        turns = range(keys.start // self.size, keys.stop // self.size)
        chosen = [self._block(lane, turn) for turn in turns]
        missing = {block * self.size // self.block_size for _, block in chosen}
        first: dict[int, int] = {}
        for its_key in range(key, keys.stop):
            block = self.example(lane, its_key) // self.block_size
            first.setdefault(block, its_key)
            missing.discard(block)
            if not missing:
                break
        if self._tail and any(block == self._giver(epoch) for epoch, block in chosen):
            first.setdefault((self.num_examples - 1) // self.block_size, keys.stop)
        return first

    @property
    def _tail(self) -> int:
        """Examples after the last whole block."""
        return self.num_examples % self.size

    def _shuffled(self, lane: int, key: int) -> int:
        """Place in its lane that an example would have if it were not for the windows."""
        keys = self.window_of(lane, key)
        at = permuted(key - keys.start, len(keys), self.seed, 0, lane, keys.stop)
        return keys.start + at

    def _block(self, lane: int, turn: int) -> tuple[int, int]:
        """The epoch and the number of a lane's block."""
        epoch, place = divmod(lane + self.lanes * turn, self.blocks)
        return epoch, permuted(place, self.blocks, self.seed, 1, epoch)

    def _giver(self, epoch: int) -> int:
        """The block that gives up places to the examples after the last whole one."""
        return permuted(0, self.blocks, self.seed, 2, epoch)


@dataclass(frozen=True)
class Draws:
    """Sources that a lane's examples come from, in a mixture.

    Each lane mixes as grain does, each from another one of the first L points of the pattern on. So
    at any time the lanes draw as many consecutive examples of the mixture would: the shares hold
    among them, and not only over time.

    Attributes:
      parts: numbers of sources, in order, or mixtures of them.
      proportions: of the parts, as whole numbers.
      lanes: L.
      seed: of the points to begin at.
    """

    parts: tuple[Draws | int, ...]
    proportions: tuple[int, ...]
    lanes: int
    seed: int

    @classmethod
    def weighted(
        cls, parts: tuple[Draws | int, ...], weights: Sequence[float], lanes: int, seed: int
    ) -> Draws:
        """A mixture by weights, which grain makes whole numbers of, from 100 up."""
        proportions = tuple(int(weight * (100 / min(weights))) for weight in weights)
        return cls(parts, proportions, lanes, seed)

    def locate(self, lane: int, key: int) -> tuple[int, int]:
        """The source of a lane's example, and its key there."""
        keys, after = self._keys(lane, key), self._keys(lane, key + 1)
        (i,) = (i for i, its_key in enumerate(keys) if its_key != after[i])
        part = self.parts[i]
        return (part, keys[i]) if isinstance(part, int) else part.locate(lane, keys[i])

    def counts(self, lane: int, key: int) -> list[int]:
        """Examples of each source before the one at a key."""
        counts = []
        for part, its_key in zip(self.parts, self._keys(lane, key), strict=True):
            counts += [its_key] if isinstance(part, int) else part.counts(lane, its_key)
        return counts

    def _keys(self, lane: int, key: int) -> list[int]:
        """Examples of each part before the one at a key."""
        start = permuted(lane, self.lanes, self.seed, 4)
        before, after = drawn(start, self.proportions), drawn(start + key, self.proportions)
        return [end - first for first, end in zip(before, after, strict=True)]


def drawn(count: int, proportions: tuple[int, ...]) -> list[int]:
    """Numbers of the first `count` draws that come from each part of a mixture, as grain mixes."""
    rest, counts = sum(proportions), []
    for proportion in proportions:
        left = count * (rest - proportion) // rest
        counts.append(count - left)
        count, rest = left, rest - proportion
    return counts
