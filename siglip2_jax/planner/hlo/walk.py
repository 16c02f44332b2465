"""Goes through a scheduled HLO program as it runs: loops as often as they run, one branch of each.

How often a loop runs is what the compiler notes (`known_trip_count`) or, as with `lax.scan` and
`lax.fori_loop`, the bound its counter is compared to; counters go up by one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from siglip2_jax.planner.hlo.cost import (
    collectives,
    hbm_bytes,
    is_call,
    matrix_flops,
    runs_beside,
)
from siglip2_jax.planner.hlo.kernels import Kernel, kernel_of
from siglip2_jax.planner.hlo.parse import Computation, Instruction, Module

_FREE = (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
)
_FREE_CALLS = ("AllocateBuffer", "ConcatBitcast")


@dataclasses.dataclass(frozen=True)
class Operation:
    """A scheduled instruction; all amounts are of all its runs together.

    Attributes:
      name: of the HLO instruction.
      opcode: such as "fusion" or "all-gather".
      op_name: where in the JAX program it comes from, such as "jit(step)/jvp()/dot_general".
      source: "file:line" of this package or of the user's code, empty if unknown.
      trips: how often it runs.
      flops: of matrix products; of a kernel those of its own cost estimate.
      hbm_bytes: read and written.
      collectives: bytes a chip sends, by kind; see `hlo_cost.collectives`.
      cycles: an estimate; None where there is none.
      timed_by: who made it: the compiler's "schedule", a kernel's "bundles", its author's "cost
        estimate", or the rate of the "links"; None where there is none.
      kernel: what it calls, if it is a Pallas kernel.
      asynchronous: it only starts something that runs beside the operations after it.
    """

    name: str
    opcode: str
    op_name: str
    source: str
    trips: int
    flops: int
    hbm_bytes: int
    collectives: dict[str, int]
    cycles: int | None
    timed_by: str | None = None
    kernel: Kernel | None = dataclasses.field(default=None, repr=False)
    asynchronous: bool = False

    @property
    def collective_bytes(self) -> int:
        """Bytes a chip sends, all kinds together."""
        return sum(self.collectives.values())

    def to_json(self) -> dict[str, Any]:
        """Everything but the kernel's code, for machines."""
        fields = (field.name for field in dataclasses.fields(self) if field.name != "kernel")
        return {name: getattr(self, name) for name in fields}


class Walk:
    """The operations of a program.

    Attributes:
      operations: in the order in which they are scheduled.
      loops: names of loops whose number of runs cannot be known from the text; they count once.
    """

    def __init__(self, module: Module):
        self.loops: list[str] = []
        self._module = module
        self.operations = list(self._computation(module.entry, 1, None, ()))

    def _computation(
        self, name: str, trips: int, caller: _Scope | None, arguments: tuple[str, ...]
    ) -> Iterator[Operation]:
        scope = _Scope(self._module.computations[name], arguments, caller)
        for x in scope.computation.instructions.values():
            yield from self._instruction(x, trips, scope)

    def _instruction(self, x: Instruction, trips: int, scope: _Scope) -> Iterator[Operation]:
        if x.opcode == "while":
            trips *= self._times(x, scope)
            yield from self._computation(_condition(x), trips, scope, x.operands)
            yield from self._computation(x.calls()[0], trips, scope, x.operands)
        elif x.opcode == "conditional":
            branches = [
                list(self._computation(branch, trips, scope, (argument,)))
                for branch, argument in zip(x.calls(), x.operands[1:], strict=True)
            ]
            yield from max(branches, key=_expense)
        elif x.opcode != "fusion" and x.calls():
            for op in self._computation(x.calls()[0], trips, scope, x.operands):
                yield op if x.opcode == "call" else dataclasses.replace(op, asynchronous=True)
        elif not self._is_free(x):
            yield self._operation(x, trips, scope.computation)

    def _is_free(self, x: Instruction) -> bool:
        if x.opcode == "fusion":
            fused = self._module.computations[x.calls()[0]]
            return is_call(fused.instructions[fused.root], "AsyncCollectiveDone")
        is_done = x.opcode.endswith(("-done", "-update"))  # counted where it was started
        return x.opcode in _FREE or is_done or any(is_call(x, target) for target in _FREE_CALLS)

    def _operation(self, x: Instruction, trips: int, where: Computation) -> Operation:
        cycles = x.attribute(r'"estimated_cycles":"(\d+)"')
        frame = x.attribute(r"stack_frame_id=(\d+)")
        sent = collectives(x, where, self._module)
        kernel = kernel_of(x, where)
        flops = (kernel.flops or 0) if kernel else matrix_flops(x, where, self._module)
        return Operation(
            name=x.name,
            opcode=x.opcode,
            op_name=x.attribute(r'op_name="([^"]*)"') or "",
            source=self._module.frames.get(int(frame), "") if frame else "",
            trips=trips,
            flops=trips * flops,
            hbm_bytes=trips * hbm_bytes(x, where, self._module),
            collectives={kind: trips * size for kind, size in sent.items()},
            cycles=trips * int(cycles) if cycles else None,
            timed_by="schedule" if cycles else None,
            kernel=kernel,
            asynchronous=runs_beside(x, self._module),
        )

    def _times(self, x: Instruction, scope: _Scope) -> int:
        """Trip count of a loop."""
        if trip_count := x.attribute(r'known_trip_count[^}]*"n":"(\d+)"'):
            return int(trip_count)
        inner = _Scope(self._module.computations[_condition(x)], x.operands, scope)
        test = inner.computation.instructions[inner.computation.root]
        if test.opcode == "fusion":
            inner = _Scope(self._module.computations[test.calls()[0]], test.operands, inner)
            test = inner.computation.instructions[inner.computation.root]
        if test.opcode == "compare" and "direction=LT" in test.attributes:
            start, bound = (inner.constant(name) for name in test.operands)
            if start is not None and bound is not None:
                return max(0, bound - start)
        self.loops.append(x.name)
        return 1


@dataclasses.dataclass(frozen=True)
class _Scope:
    """A computation and what it was called with, to follow constants into loops."""

    computation: Computation
    arguments: tuple[str, ...]
    caller: _Scope | None

    def constant(self, name: str) -> int | None:
        """The integer an instruction gives, at a loop's first run; None if it is not known."""
        x = self.computation.instructions[name]
        if x.opcode == "constant":
            return int(x.inside) if x.inside.lstrip("-").isdigit() else None
        if x.opcode in ("copy", "bitcast", "copy-start", "copy-done"):
            return self.constant(x.operands[0])
        if x.opcode == "parameter" and self.caller:
            return self.caller.constant(self.arguments[int(x.inside)])
        if x.opcode == "get-tuple-element":
            return self.element(x.operands[0], int(x.attribute(r"index=(\d+)") or ""))
        return None

    def element(self, name: str, index: int) -> int | None:
        """The integer at one place of a tuple."""
        x = self.computation.instructions[name]
        if x.opcode == "tuple":
            return self.constant(x.operands[index])
        if x.opcode == "parameter" and self.caller:
            return self.caller.element(self.arguments[int(x.inside)], index)
        return None


def _condition(x: Instruction) -> str:
    return x.attribute(r"condition=%?([\w.\-]+)") or ""


def _expense(operations: list[Operation]) -> tuple[int, int, int]:
    """Sort key of the cost of a branch."""
    return (
        sum(op.cycles or 0 for op in operations),
        sum(op.flops for op in operations),
        sum(op.hbm_bytes for op in operations),
    )
