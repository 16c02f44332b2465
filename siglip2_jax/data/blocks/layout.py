"""Pieces of work of a run: which rows of each step's batch each of them makes; arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from siglip2_jax.data.lengths import StepSchedule


@dataclass(frozen=True)
class Layout:
    """One host's rows of each step, in the same number of pieces at every step.

    Attributes:
      reading: the steps.
      process_index: number of this host.
      process_count: number of hosts.
      parts: pieces of a step, a multiple of `workers`.
      workers: processes that share the pieces, at least 1; number p % workers makes piece p.
      lanes: streams that rows are dealt from, in block order: each gives as many rows, which stand
        together, and belongs to one piece, the same one at every step. None where any piece may
        have any example.
    """

    reading: StepSchedule
    process_index: int
    process_count: int
    parts: int
    workers: int
    lanes: int | None

    def rows(self, i: int, part: int) -> range:
        """Rows of this host's batch that a piece of the step `reading[i]` makes."""
        local = self.reading[i][2] // self.process_count
        if self.lanes is None:
            return range(part * local // self.parts, (part + 1) * local // self.parts)
        each, first = self.each(i), self.process_index * self.lanes // self.process_count
        lanes = self.lanes_of(part)
        return range((lanes.start - first) * each, (lanes.stop - first) * each)

    def indices(self, i: int, part: int) -> list[int]:
        """Global indices of a piece's examples."""
        _, _, size, position = self.reading[i]
        first = self.process_index * size // self.process_count
        rows = [first + row for row in self.rows(i, part)]
        if self.lanes is None:
            return [position + row for row in rows]
        each = self.each(i)
        return [position + row % each * self.lanes + row // each for row in rows]

    def lanes_of(self, part: int) -> range:
        """Lanes of a piece, in block order."""
        assert self.lanes is not None
        local = self.lanes // self.process_count
        first = self.process_index * local
        return range(first + part * local // self.parts, first + (part + 1) * local // self.parts)

    def keys(self, i: int) -> range:
        """Positions in every lane that a step takes, in block order."""
        assert self.lanes is not None
        start = self.reading[i][3] // self.lanes
        return range(start, start + self.each(i))

    def each(self, i: int) -> int:
        """Rows of a step from each lane, in block order."""
        assert self.lanes is not None
        return self.reading[i][2] // self.lanes


def layout(
    reading: StepSchedule,
    process_index: int,
    process_count: int,
    chunk: int,
    workers: int = 0,
    lanes: int | None = None,
) -> Layout:
    """Cuts one host's share of each step into pieces of about `chunk` examples at most, evenly.

    Args:
      reading: the steps.
      process_index: number of this host.
      process_count: number of hosts.
      chunk: examples of a piece.
      workers: processes that share the pieces; 0 for this one alone.
      lanes: streams that batches are dealt from, in block order, a divisor of all batch sizes.

    Raises:
      ValueError: a batch cannot be divided among the hosts, or the lanes cannot.
    """
    for size in reading.batch_sizes:
        if size % process_count:
            raise ValueError(
                f"a batch of {size} cannot be divided among {process_count} hosts; choose a batch "
                "size that is a multiple of their number"
            )
    if lanes and lanes % process_count:
        raise ValueError(
            f"the {lanes} lanes of the block order cannot be divided among {process_count} hosts; "
            "choose batch sizes and BlockShuffle.lanes that are multiples of the hosts' number"
        )
    if lanes and reading.position % lanes:
        raise ValueError(
            f"the run stands at example {reading.position}, which {lanes} lanes of the block order "
            "do not divide; keep the batch sizes and BlockShuffle.lanes that it began with"
        )
    local = (lanes or min(reading.batch_sizes)) // process_count
    used = min(max(1, workers), local)
    wanted = -(-max(reading.batch_sizes) // process_count // chunk)
    parts = used * max(1, min(-(-wanted // used), local // used))
    return Layout(reading, process_index, process_count, parts, used, lanes)
