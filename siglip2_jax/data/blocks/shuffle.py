"""Settings of the order that reads blocks of examples (`data.blocks.order`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import gcd

from siglip2_jax.data.sources import Blocked, Examples

# Lanes that no stage has more of: with them, 128 hosts can have 32 workers each.
MOST_LANES = 4096
# Blocks of a window, where data and memory do not ask for fewer.
LEAST_WINDOW = 4


@dataclass(frozen=True)
class BlockShuffle:
    """Random order that reads blocks of examples: each once an epoch, by one worker of one host.

    The defaults make about two blocks stand in memory for every example of a batch, so that a
    batch seldom has two examples of a block (docs/training.md has the measurements).

    Attributes:
      lanes: streams that a batch is dealt from in equal parts; the number used is the greatest
        common divisor of this and all batch sizes of the stage. Hosts must divide it, and a host
        uses at most as many workers as it has lanes. None for the most that leave two examples of
        a lane in the largest batch, up to 4096.
      window: blocks of a lane among which its examples are permuted; memory is in proportion. None
        for as many as give two for each example of the largest batch, at least 4.
    """

    lanes: int | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("lanes", self.lanes), ("window", self.window)):
            if value is not None and value < 1:
                raise ValueError(f"BlockShuffle.{name} must be at least 1, got {value}")

    def resolve(self, batch_sizes: tuple[int, ...]) -> tuple[int, int]:
        """Lanes and blocks of a window, for all batch sizes of a stage."""
        largest = max(batch_sizes)
        lanes = gcd(self.lanes or MOST_LANES, *batch_sizes)
        while self.lanes is None and 2 * lanes > largest and lanes % 2 == 0:
            lanes //= 2
        return lanes, self.window or max(LEAST_WINDOW, -(-2 * largest // lanes))


def block_shuffle(shuffle: bool | BlockShuffle, opened: Iterable[Examples]) -> BlockShuffle | None:
    """Settings of the order of blocks, where data is read in one; None where it is not.

    Args:
      shuffle: what the config says; True leaves it to the data.
      opened: all of the data.
    """
    if shuffle is True and any(isinstance(x, Blocked) and x.remote for x in opened):
        return BlockShuffle()
    return None if isinstance(shuffle, bool) else shuffle
