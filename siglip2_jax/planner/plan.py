"""Plan of a training step on absent TPUs: memory, time and communication, from the compiler."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from siglip2_jax.config import ResolvedStage
from siglip2_jax.planner.estimate import Estimate, chip_of, local_bytes, measure
from siglip2_jax.planner.hlo.program import AMOUNTS, top
from siglip2_jax.planner.hlo.walk import Operation
from siglip2_jax.planner.results import NO_RESULTS, Results
from siglip2_jax.sharding import BATCH
from siglip2_jax.train.compiler import jit_step
from siglip2_jax.train.feed import BATCHES_WAITING
from siglip2_jax.train.inputs import abstract_batch
from siglip2_jax.train.start import abstract_state, warn_if_unsplit
from siglip2_jax.train.step import Program

DAY = 86_400.0
_MOST = 50  # operations of each kind, in JSON


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepPlan(Estimate):
    """The step of one stage at one token budget; bytes, FLOPs and seconds are per chip and step.

    Its memory has the parts "parameters", "optimizer", "average", "reference", "inputs",
    "activations" (and every other temporary) and "code", and beside them "waiting".

    Attributes:
      stage: name of the stage.
      budget: patches an image may have.
      share: share of the stage's steps that have this budget.
      steps: of the stage.
      operations: all of the program, in the order in which they are scheduled.
      untimed: how many operations the schedule has no time for.
      uncounted: how many kernels have no FLOP estimate.
    """

    stage: str
    budget: int
    share: float
    steps: int
    operations: tuple[Operation, ...]
    untimed: int
    uncounted: int

    @property
    def days(self) -> float:
        """Days that the stage's steps of this budget take."""
        return self.seconds * self.share * self.steps / DAY

    @property
    def chip_hours(self) -> float:
        """Hours of all chips together in that time."""
        return self.days * 24 * self.chips

    def to_json(self) -> dict[str, Any]:
        """Everything, for machines; times in seconds, operations the largest of each kind."""
        operations = {
            kind: [op.to_json() for op in top(self.operations, amount, _MOST)]
            for kind, amount in AMOUNTS.items()
        }
        return super().to_json() | {
            "days": self.days,
            "chip_hours": self.chip_hours,
            "operations": operations,
        }


def plan_step(
    stage: ResolvedStage,
    budget: int,
    mesh: Mesh,
    batch_size: int | None = None,
    results: Results = NO_RESULTS,
) -> StepPlan:
    """Compiles one step and measures it; touches no device.

    Args:
      stage: what to plan a step of.
      budget: patches an image may have, one of the stage's lengths.
      mesh: of the topology's chips.
      batch_size: examples that the step reads; None takes the stage's for this budget.
      results: of earlier compilations.

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
    analysis, sizes = measure(
        lowered,
        mesh,
        f"stage {stage.name!r} at {budget} patches and batch {batch_size:,}",
        f"use more chips, a smaller batch or {stage.least_memory}",
        results,
    )
    parts = {
        "parameters": local_bytes(state.params),
        "optimizer": local_bytes(state.optimizer),
        "average": local_bytes(state.ema_params),
        "reference": local_bytes(state.teacher_params),
        "inputs": local_bytes(batch),
        "activations": sizes["temporaries"],
        "code": sizes["code"],
        "peak": sizes["peak"],
        "waiting": BATCHES_WAITING * local_bytes(batch),
    }
    return StepPlan(
        stage=stage.name,
        budget=budget,
        batch_size=batch_size,
        chips=mesh.size,
        chip=chip_of(mesh),
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
