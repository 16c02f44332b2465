"""Time, HBM traffic and communication of a compiled TPU program, read off its schedule.

XLA's own `cost_analysis()` counts the body of a loop once, however often it runs; here every loop
counts as often as it runs. Time is the compiler's static estimate (`estimated_cycles`), without
contention for HBM or links and without what it does not estimate: gathers, scatters. Pallas kernels
are timed apart (`kernel_time`). A collective that everything waits for counts at the rate of the
links, one that runs beside other operations not at all. It is good for comparing programs that are
compiled alike.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import jax

from siglip2_jax.planner.hlo.kernels import Kernel
from siglip2_jax.planner.hlo.parse import parse
from siglip2_jax.planner.hlo.walk import Operation, Walk
from siglip2_jax.train.chips import Chip

_NOTABLE = 4096  # bytes; below it are counters and flags
_ALLOCATED = re.compile(r"Memory Space: default .*\nTotal bytes: (\d+)")

Amount = Callable[[Operation], float]
KernelTimer = Callable[[tuple[Kernel, ...], Chip], tuple[int | None, ...]]

AMOUNTS: dict[str, Amount] = {
    "time": lambda op: op.cycles or 0,
    "hbm": lambda op: op.hbm_bytes,
    "collectives": lambda op: op.collective_bytes,
}
"""Amounts to rank operations by: cycles, bytes of HBM, bytes sent."""


@dataclasses.dataclass(frozen=True)
class Analysis:
    """Cost of one run of a program to a chip.

    Attributes:
      operations: all that take time, in the order in which they are scheduled.
      clock_hz: cycles per second.
      loops: loops whose number of runs cannot be known from the text; they count once.
    """

    operations: tuple[Operation, ...]
    clock_hz: float
    loops: tuple[str, ...]

    @property
    def flops(self) -> int:
        """FLOPs of matrix products, and of kernels by their own cost estimates."""
        return sum(op.flops for op in self.operations)

    @property
    def hbm_bytes(self) -> int:
        """Bytes read from and written to HBM."""
        return sum(op.hbm_bytes for op in self.operations)

    @property
    def collectives(self) -> dict[str, int]:
        """Bytes a chip sends, by kind."""
        kinds = sorted({kind for op in self.operations for kind in op.collectives})
        return {kind: sum(op.collectives.get(kind, 0) for op in self.operations) for kind in kinds}

    @property
    def seconds(self) -> float:
        """Estimated time."""
        return sum(op.cycles or 0 for op in self.operations) / self.clock_hz

    @property
    def not_estimated(self) -> tuple[Operation, ...]:
        """Gathers, foreign calls and the like, whose time is missing in `seconds`."""
        return tuple(
            op
            for op in self.operations
            if op.cycles is None
            and not op.collectives
            and (op.opcode in ("custom-call", "fusion") or op.hbm_bytes >= _NOTABLE * op.trips)
            and not op.opcode.endswith(("-start", "send", "recv"))
        )

    @property
    def not_counted(self) -> tuple[Operation, ...]:
        """Kernels without a cost estimate, whose FLOPs are missing in `flops`."""
        return tuple(op for op in self.operations if op.kernel and op.kernel.flops is None)


def top(operations: Iterable[Operation], amount: Amount, count: int = 10) -> list[Operation]:
    """The operations with most of something.

    Args:
      operations: to choose from.
      amount: of what, such as one of `AMOUNTS`.
      count: at most so many.

    Returns:
      Most first; operations with none are left out.
    """
    ranked = sorted(operations, key=amount, reverse=True)[:count]
    return [op for op in ranked if amount(op) > 0]


def merged(operations: Iterable[Operation]) -> list[Operation]:
    """Operations of one kind from one line as one, so that unrolled layers read like a loop.

    Args:
      operations: of a program.

    Returns:
      One for each opcode, line and name in the JAX program, called as the first of them; amounts
      and trips are summed.
    """
    groups: dict[tuple[str, ...], list[Operation]] = {}
    for op in operations:
        groups.setdefault((op.opcode, op.op_name, op.source), []).append(op)
    return [_merge(group) for group in groups.values()]


def _merge(group: list[Operation]) -> Operation:
    kinds = {kind for op in group for kind in op.collectives}
    timed = [(op.cycles, op.timed_by) for op in group if op.cycles is not None]
    return dataclasses.replace(
        group[0],
        trips=sum(op.trips for op in group),
        flops=sum(op.flops for op in group),
        hbm_bytes=sum(op.hbm_bytes for op in group),
        collectives={kind: sum(op.collectives.get(kind, 0) for op in group) for kind in kinds},
        cycles=sum(cycles for cycles, _ in timed) if timed else None,
        timed_by=timed[0][1] if timed else None,
    )


def analyse(text: str, chip: Chip, time_kernels: KernelTimer | None = None) -> Analysis:
    """Reads the optimized, scheduled program of one chip.

    Args:
      text: what `compiled.as_text()` returns for a TPU.
      chip: what it is compiled for.
      time_kernels: gives the cycles of one call of each of some kernels, None for those it cannot
        tell, such as `kernel_time.cycles_of`; None times no kernel. A kernel takes at least as
        long as its HBM traffic and the products of its own cost estimate; one without cycles
        counts by these, if it has an estimate.

    Returns:
      All operations with what they cost.

    Raises:
      ValueError: the text is not a scheduled HLO program.
    """
    if "is_scheduled=true" not in text.partition("\n")[0]:
        raise ValueError(
            "the HLO text is not of a scheduled program; pass what compiled.as_text() returns"
        )
    walk = Walk(parse(text))
    kernels = tuple(dict.fromkeys(op.kernel for op in walk.operations if op.kernel))
    cycles = time_kernels(kernels, chip) if time_kernels else (None,) * len(kernels)
    once = dict(zip(kernels, cycles, strict=True))
    operations = (
        _timed(op, once[op.kernel], chip) if op.kernel else _waited_for(op, chip)
        for op in walk.operations
    )
    return Analysis(tuple(operations), chip.clock_hz, tuple(walk.loops))


def _timed(op: Operation, once: int | None, chip: Chip) -> Operation:
    """A kernel's operation with its time, given the cycles of one call."""
    if once is None and (op.kernel is None or op.kernel.flops is None):
        return op
    # The bundles of a kernel that fills the matrix units can be fewer than the cycles these take.
    roofline = max(op.flops / chip.flops, op.hbm_bytes / chip.hbm_bandwidth) * chip.clock_hz
    cycles = round(max(roofline, op.trips * (once or 0)))
    by = "cost estimate" if once is None else "bundles"
    return dataclasses.replace(op, cycles=cycles, timed_by=by)


def _waited_for(op: Operation, chip: Chip) -> Operation:
    """An operation, with the time on the links of a collective that nothing runs beside."""
    if op.cycles is not None or op.asynchronous or not op.collectives:
        return op
    seconds = max(op.collective_bytes / chip.ici_bandwidth, op.hbm_bytes / chip.hbm_bandwidth)
    return dataclasses.replace(op, cycles=round(seconds * chip.clock_hz), timed_by="links")


def memory(compiled: jax.stages.Compiled, allocated: int | None = None) -> dict[str, int]:
    """Device memory a program needs, in bytes per chip.

    Args:
      compiled: a compiled program.
      allocated: what the compiler's report says (`allocated_bytes`). None takes its statistics,
        which on TPUs are a lower bound: what is live at the same time, without gaps between it.

    Returns:
      "arguments", "outputs", "aliases" (outputs that lie in arguments), "temporaries", "code", and
      "peak", which is all of them together.
    """
    stats = compiled.memory_analysis()
    assert stats is not None  # as on every TPU
    parts = {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes,
        "aliases": stats.alias_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    if allocated is None and _is_of_tpu(compiled):
        allocated = stats.peak_memory_in_bytes
    if allocated is not None:  # libtpu's size of temporaries counts some of them twice
        rest = parts["arguments"] + parts["outputs"] - parts["aliases"]
        parts["temporaries"] = max(0, allocated - rest)
    return {**parts, "peak": sum(parts.values()) - 2 * parts["aliases"]}


def allocated_bytes(reports: Path) -> int | None:
    """Bytes of HBM that the compiler allocates, arguments included, by its report.

    Args:
      reports: a folder that it wrote reports to.

    Returns:
      The bytes; None where there is no such report.
    """
    texts = [path.read_text() for path in reports.glob("*memory-usage-report.txt")]
    found = [match for text in texts if (match := _ALLOCATED.search(text))]
    return max((int(match[1]) for match in found), default=None)


def _is_of_tpu(compiled: jax.stages.Compiled) -> bool:
    shardings = jax.tree.leaves(compiled.output_shardings)
    return any(device.platform == "tpu" for x in shardings for device in x.device_set)
