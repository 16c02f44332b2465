"""Estimate of any program on absent TPUs: memory, time and communication, from the compiler.

A program is compiled for a real topology with libtpu and read off its schedule. Times are the
compiler's own static estimates, and for kernels their length in instructions: good for comparing
programs. `cost_analysis` is not used, as it counts the body of a loop once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from siglip2_jax.planner.hlo.kernel_time import cycles_of
from siglip2_jax.planner.hlo.program import Analysis, allocated_bytes, analyse, memory
from siglip2_jax.planner.hlo.walk import Operation
from siglip2_jax.planner.results import NO_RESULTS, Results, describe_mesh, digest_code, key_of
from siglip2_jax.planner.topology import compile_only
from siglip2_jax.train.chips import CHIPS, Chip
from siglip2_jax.train.compiler import OPTIONS


class DoesNotFit(ValueError):
    """A program that needs so much more memory than a chip has that the compiler gives up."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """One run of a program; bytes, FLOPs and seconds are per chip.

    Attributes:
      batch_size: examples that it takes, over all chips.
      chips: how many.
      chip: what they are.
      memory: parts, among them "waiting" (batches on the chip beside the one that the program
        reads, where there are any), and "peak", which is that of the program alone; in bytes.
      model_flops: analytic.
      flops: of matrix products in the program, and of kernels by their own cost estimates.
      hbm_bytes: read and written.
      collectives: bytes sent, by kind.
      scheduled: seconds in the schedule, without collectives that run beside other operations, and
        without operations with no estimate.
    """

    batch_size: int
    chips: int
    chip: Chip
    memory: dict[str, int]
    model_flops: float
    flops: int
    hbm_bytes: int
    collectives: dict[str, int]
    scheduled: float

    @property
    def fits(self) -> bool:
        """True where the program, and the batches that wait, fit into a chip's memory."""
        return self.needed_bytes <= self.chip.hbm_bytes

    @property
    def needed_bytes(self) -> int:
        """Memory of the program and of the batches that wait."""
        return self.memory["peak"] + self.memory.get("waiting", 0)

    @property
    def compute_seconds(self) -> float:
        """Roofline: the program's matrix products at the chip's peak."""
        return self.flops / self.chip.flops

    @property
    def hbm_seconds(self) -> float:
        """Roofline: its memory traffic at the memory's bandwidth."""
        return self.hbm_bytes / self.chip.hbm_bandwidth

    @property
    def ici_seconds(self) -> float:
        """Roofline: its communication at the links' bandwidth (all of it, across slices too)."""
        return sum(self.collectives.values()) / self.chip.ici_bandwidth

    @property
    def seconds(self) -> float:
        """Estimated time: the schedule, or a roofline that is longer."""
        return max(self.scheduled, self.compute_seconds, self.hbm_seconds, self.ici_seconds)

    @property
    def mfu(self) -> float:
        """The share of the chip's peak that the model's analytic FLOPs use."""
        return self.model_flops / self.seconds / self.chip.flops

    @property
    def examples_per_second(self) -> float:
        """Per chip."""
        return self.batch_size / self.chips / self.seconds

    def to_json(self) -> dict[str, Any]:
        """The fields and what follows from them, for machines; times in seconds."""
        names = [field.name for field in dataclasses.fields(self)]
        names += "fits compute_seconds hbm_seconds ici_seconds seconds mfu".split()
        names += ["examples_per_second"]
        return {name: getattr(self, name) for name in names} | {"chip": self.chip.name}


Measurement = tuple[Analysis, dict[str, int]]  # cost, and memory by kind


def measure(
    lowered: jax.stages.Lowered,
    mesh: Mesh,
    subject: str,
    way_out: str,
    results: Results = NO_RESULTS,
) -> Measurement:
    """Compiles a program and reads off its cost and its memory; touches no device.

    Args:
      lowered: a program lowered for devices of a topology.
      mesh: of those devices.
      subject: what the program is, to begin an error with.
      way_out: what to do where it does not fit.
      results: of earlier compilations.

    Raises:
      DoesNotFit: the program needs so much memory that the compiler refuses it.
    """
    chip = chip_of(mesh)
    program = lowered.as_text(debug_info=True)  # with lines, which operations are shown by
    basis = describe_mesh(mesh), repr(chip), repr(OPTIONS), digest_code("planner/hlo")
    key = key_of("program", program, *basis)
    measured = results.get(key)
    if measured is None:
        measured = _compile(lowered, chip, results)
        if isinstance(measured, str) or has_all_times(measured[0].operations):
            results.put(key, measured)
    if isinstance(measured, str):
        raise DoesNotFit(f"{subject} does not fit ({measured}); {way_out}")
    return measured


def _compile(lowered: jax.stages.Lowered, chip: Chip, results: Results) -> Measurement | str:
    """The measurement, or the compiler's reason to refuse the program."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            compiled = compile_only(lowered, Path(folder))
            allocated = allocated_bytes(Path(folder))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        why = str(error).partition("\n")[0].removeprefix("RESOURCE_EXHAUSTED: ")
        return why.rstrip(".")
    timer = functools.partial(cycles_of, results=results)
    return analyse(compiled.as_text() or "", chip, timer), memory(compiled, allocated)


def has_all_times(operations: Iterable[Operation]) -> bool:
    """True where every kernel was timed: otherwise trying again may help."""
    return all(op.timed_by == "bundles" for op in operations if op.kernel)


def chip_of(mesh: Mesh) -> Chip:
    """Chip type of a mesh.

    Raises:
      ValueError: its peak rates are not known.
    """
    kind = mesh.devices.flat[0].device_kind
    chips = [chip for chip in CHIPS if kind in chip.device_kinds]
    if not chips:
        raise ValueError(f"the rates of a {kind} are not known; add it to siglip2_jax.train.chips")
    return chips[0]


def local_bytes(tree: Any) -> int:
    """Bytes that one chip holds of a tree of sharded shapes."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )
