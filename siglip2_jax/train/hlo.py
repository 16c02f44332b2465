"""Time, HBM traffic and communication of a compiled TPU program, read off its schedule.

XLA's own `cost_analysis()` counts the body of a loop once, however often it runs; here every loop
counts as often as it runs. Time is the compiler's static estimate (`estimated_cycles`), without
contention for HBM or links and without what it does not estimate: collectives, custom calls such as
Pallas kernels, gathers and scatters. It is good for comparing programs that are compiled alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax

from siglip2_jax.train.hlo_parse import parse
from siglip2_jax.train.hlo_walk import Operation, Walk

_NOTABLE = 4096  # bytes; below it are counters and flags


@dataclasses.dataclass(frozen=True)
class Analysis:
    """What one run of a program costs a chip.

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
        """FLOPs of matrix products, those of custom calls not included."""
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
        """Custom calls, gathers and the like, whose time is missing in `seconds`."""
        return tuple(
            op
            for op in self.operations
            if op.cycles is None
            and not op.collectives
            and (op.opcode in ("custom-call", "fusion") or op.hbm_bytes >= _NOTABLE * op.trips)
            and not op.opcode.endswith(("-start", "send", "recv"))
        )

    def top(self, amount: Callable[[Operation], float], count: int = 10) -> list[Operation]:
        """The operations with most of something.

        Args:
          amount: of what, such as `lambda op: op.hbm_bytes`.
          count: at most so many.

        Returns:
          Most first; operations with none are left out.
        """
        ranked = sorted(self.operations, key=amount, reverse=True)[:count]
        return [op for op in ranked if amount(op) > 0]


def analyse(text: str, clock_hz: float) -> Analysis:
    """Reads the optimized, scheduled program of one chip.

    Args:
      text: what `compiled.as_text()` returns for a TPU.
      clock_hz: of the chip, see `siglip2_jax.train.chips`.

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
    return Analysis(tuple(walk.operations), clock_hz, tuple(walk.loops))


def memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Device memory a program needs, in bytes per chip.

    Args:
      compiled: a compiled program.

    Returns:
      "arguments", "outputs", "aliases" (outputs that lie in arguments), "temporaries", "code", and
      "peak", which is all of them together.
    """
    stats = compiled.memory_analysis()
    parts = {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes,
        "aliases": stats.alias_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    return {**parts, "peak": sum(parts.values()) - 2 * parts["aliases"]}
