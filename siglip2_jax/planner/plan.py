"""Plan of a step on absent TPUs: memory, time and communication, from the compiler.

Each stage's step is compiled for a real topology with libtpu and read off its schedule. Times are
the compiler's own static estimates, and for kernels their length in instructions: good for
comparing programs. `cost_analysis` is not used, as it counts the body of a loop once.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from siglip2_jax.config import ResolvedStage
from siglip2_jax.planner.hlo.kernel_time import cycles_of
from siglip2_jax.planner.hlo.program import AMOUNTS, analyse, memory, top
from siglip2_jax.planner.hlo.walk import Operation
from siglip2_jax.planner.topology import compile_only
from siglip2_jax.sharding import BATCH
from siglip2_jax.train.chips import CHIPS, Chip
from siglip2_jax.train.compiler import jit_step
from siglip2_jax.train.inputs import abstract_batch
from siglip2_jax.train.start import abstract_state, warn_if_unsplit
from siglip2_jax.train.step import Program

DAY = 86_400.0
_MOST = 50  # operations of each kind, in JSON


class DoesNotFit(ValueError):
    """A program that needs so much more memory than a chip has that the compiler gives up."""


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """The step of one stage at one token budget; bytes, FLOPs and seconds are per chip and step.

    Attributes:
      stage: name of the stage.
      budget: patches an image may have.
      batch_size: examples that the step reads, over all chips.
      chips: how many.
      chip: what they are.
      share: share of the stage's steps that have this budget.
      steps: of the stage.
      memory: peak and parts, in bytes: "parameters", "optimizer", "average", "reference",
        "inputs", "activations" (and every other temporary), "code", "peak".
      model_flops: analytic.
      flops: of matrix products in the program, and of kernels by their own cost estimates.
      hbm_bytes: read and written.
      collectives: bytes sent, by kind.
      scheduled: seconds in the schedule, without collectives and operations with no estimate.
      operations: all of the program, in the order in which they are scheduled.
      untimed: how many operations the schedule has no time for.
      uncounted: how many kernels have no FLOP estimate.
    """

    stage: str
    budget: int
    batch_size: int
    chips: int
    chip: Chip
    share: float
    steps: int
    memory: dict[str, int]
    model_flops: float
    flops: int
    hbm_bytes: int
    collectives: dict[str, int]
    scheduled: float
    operations: tuple[Operation, ...]
    untimed: int
    uncounted: int

    @property
    def fits(self) -> bool:
        """True where the program fits into a chip's memory."""
        return self.memory["peak"] <= self.chip.hbm_bytes

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
        """Estimated time of a step: the schedule, or a roofline that is longer."""
        return max(self.scheduled, self.compute_seconds, self.hbm_seconds, self.ici_seconds)

    @property
    def mfu(self) -> float:
        """The share of the chip's peak that the model's analytic FLOPs use."""
        return self.model_flops / self.seconds / self.chip.flops

    @property
    def examples_per_second(self) -> float:
        """Per chip."""
        return self.batch_size / self.chips / self.seconds

    @property
    def days(self) -> float:
        """Days that the stage's steps of this budget take."""
        return self.seconds * self.share * self.steps / DAY

    def to_json(self) -> dict[str, Any]:
        """Everything, for machines; times in seconds, operations the largest of each kind."""
        names = [field.name for field in dataclasses.fields(self)]
        names += "fits compute_seconds hbm_seconds ici_seconds seconds mfu".split()
        names += "examples_per_second days".split()
        operations = {
            kind: [op.to_json() for op in top(self.operations, amount, _MOST)]
            for kind, amount in AMOUNTS.items()
        }
        values = {name: getattr(self, name) for name in names}
        return values | {"chip": self.chip.name, "operations": operations}


def plan_step(
    stage: ResolvedStage, budget: int, mesh: Mesh, batch_size: int | None = None
) -> StepPlan:
    """Compiles one step and measures it; touches no device.

    Args:
      stage: what to plan a step of.
      budget: patches an image may have, one of the stage's lengths.
      mesh: of the topology's chips.
      batch_size: examples that the step reads; None takes the stage's for this budget.

    Raises:
      DoesNotFit: the program needs so much memory that the compiler refuses it.
      ValueError: the topology's chips are unknown.
    """
    program, lengths = Program(stage), stage.lengths
    batch_size = batch_size or lengths.batch_size(budget, stage.read_size)
    warn_if_unsplit(program, mesh)
    state = abstract_state(program, mesh)
    batch = abstract_batch(stage, budget, batch_size, NamedSharding(mesh, BATCH))
    with jax.set_mesh(mesh):
        lowered = jit_step(program.step).lower(state, batch)
    try:
        compiled = compile_only(lowered)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        why = str(error).partition("\n")[0].removeprefix("RESOURCE_EXHAUSTED: ").rstrip(".")
        raise DoesNotFit(
            f"stage {stage.name!r} at {budget} patches and batch {batch_size:,} does not fit "
            f'({why}); use more chips, a smaller batch or compute.remat="full"'
        ) from error
    chip = chip_of(mesh)
    analysis = analyse(compiled.as_text() or "", chip, cycles_of)
    sizes = memory(compiled)
    parts = {
        "parameters": local_bytes(state.params),
        "optimizer": local_bytes(state.optimizer),
        "average": local_bytes(state.ema_params),
        "reference": local_bytes(state.teacher_params),
        "inputs": local_bytes(batch),
        "activations": sizes["temporaries"],
        "code": sizes["code"],
        "peak": sizes["peak"],
    }
    return StepPlan(
        stage=stage.name,
        budget=budget,
        batch_size=batch_size,
        chips=mesh.size,
        chip=chip,
        share=float(lengths.probabilities[lengths.budgets.index(budget)]),
        steps=stage.num_steps,
        memory=parts,
        model_flops=program.flops(budget, batch_size) / mesh.size,
        flops=analysis.flops,
        hbm_bytes=analysis.hbm_bytes,
        collectives=analysis.collectives,
        scheduled=analysis.seconds,
        operations=analysis.operations,
        untimed=len(analysis.not_estimated),
        uncounted=len(analysis.not_counted),
    )


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
