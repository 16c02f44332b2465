"""Pallas kernels in a compiled TPU program.

XLA does not look into a kernel: its FLOPs are those of the author's `cost_estimate` in
`pallas_call`, its HBM traffic counts as that of any call, each operand read and each result written
once, and its time is found in `kernel_time`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from typing import Any

from siglip2_jax.planner.hlo.parse import Computation, Instruction, Shape

TARGET = "tpu_custom_call"
_COMPILED_FROM = ("custom_call_config", "scoped_memory_configs", "flag_configs")

Arrays = tuple[tuple[str, tuple[int, ...]], ...]


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel and the arrays it is called with.

    Attributes:
      config: the call's backend configuration, as JSON, with the code in it.
      operands: HLO element type and dimensions of each.
      results: the same.
    """

    config: str
    operands: Arrays
    results: Arrays

    @property
    def flops(self) -> int | None:
        """FLOPs of one call, by the author's `cost_estimate`; None without one."""
        estimate = json.loads(self.config).get("custom_call_config", {}).get("cost_estimate")
        return None if estimate is None else int(estimate["flops"])


def kernel_of(x: Instruction, where: Computation) -> Kernel | None:
    """The kernel that an instruction calls; None for any other instruction."""
    key = "backend_config="
    if x.opcode != "custom-call" or f'custom_call_target="{TARGET}"' not in x.attributes:
        return None
    start = x.attributes.find(key + "{")
    config: dict[str, Any] = {}
    if start >= 0:
        config = json.JSONDecoder().raw_decode(x.attributes, start + len(key))[0]
    code = {name: config[name] for name in _COMPILED_FROM if name in config}
    operands = (shape for name in x.operands for shape in where.instructions[name].shapes)
    return Kernel(json.dumps(code, sort_keys=True), _arrays(operands), _arrays(x.shapes))


def _arrays(shapes: Iterable[Shape]) -> Arrays:
    return tuple((shape.kind, shape.dims) for shape in shapes)
