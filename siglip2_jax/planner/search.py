"""Search for compute settings: the step of one stage, planned with many of them.

Saving more of the forward pass for the backward pass costs memory and saves time, unrolled layers
run faster and take more memory than a loop, and a batch fills the chip. Every combination is
compiled; on the Pareto front are those that none beats in both time and memory.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from siglip2_jax.config import ResolvedStage
from siglip2_jax.models.compute import ACTIVATIONS, Remat
from siglip2_jax.planner.estimate import DoesNotFit
from siglip2_jax.planner.plan import StepPlan

REMATS: tuple[Remat, ...] = (
    "none",
    0.25,
    0.5,
    0.75,
    "full",
    ACTIVATIONS,
    ("attn_out", "x_mid", "mlp_pre"),
)
"""Remat policies that a search tries by default."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to run a step.

    Attributes:
      batch_size: examples that the step reads, over all chips.
      scan: layers as a loop; False unrolls them.
      remat: as in `Compute`.
    """

    batch_size: int
    scan: bool
    remat: Remat

    @property
    def saved(self) -> str:
        """`remat` in a word, as `remat_of` reads it."""
        return remat_text(self.remat)

    def __str__(self) -> str:
        layers = "scan" if self.scan else "unrolled"
        return f"batch {self.batch_size:,}, {layers}, remat {self.saved}"


@dataclasses.dataclass(frozen=True)
class Trial:
    """A candidate and its plan.

    Attributes:
      candidate: what was tried.
      plan: its step; None if it needs so much memory that it does not compile.
    """

    candidate: Candidate
    plan: StepPlan | None

    @property
    def fits(self) -> bool:
        """True where the program runs on the chips."""
        return self.plan is not None and self.plan.fits

    @property
    def example_seconds(self) -> float:
        """Step time per example of the whole batch; infinite without a plan."""
        return float("inf") if self.plan is None else self.plan.seconds / self.plan.batch_size

    @property
    def peak(self) -> int | float:
        """Peak of a chip's memory, in bytes; infinite without a plan."""
        return float("inf") if self.plan is None else self.plan.memory["peak"]

    def to_json(self) -> dict[str, Any]:
        """Everything, for machines; `plan` as `StepPlan.to_json`, or None."""
        plan = None if self.plan is None else self.plan.to_json()
        fields = dataclasses.asdict(self.candidate) | {"fits": self.fits, "plan": plan}
        return fields | {"example_seconds": self.example_seconds if plan else None}


def remat_text(remat: Remat) -> str:
    """A remat policy in a word, as `remat_of` reads it."""
    return "+".join(remat) if isinstance(remat, tuple) else str(remat)


def remat_of(text: str) -> Remat:
    """Reads a remat policy: "none", "full", "dots", a share, or activations joined by "+".

    Raises:
      ValueError: it is something else.
    """
    if text in ("none", "full", "dots"):
        return text
    try:
        return float(text)
    except ValueError:
        pass
    names = tuple(text.split("+"))
    if unknown := [name for name in names if name not in ACTIVATIONS]:
        raise ValueError(
            f"remat {text!r} names {unknown[0]!r}; expected none, full, dots, a share of "
            f"the blocks, or some of {', '.join(ACTIVATIONS)} joined by +"
        )
    return names


def candidates(
    batch_sizes: Sequence[int],
    scans: Sequence[bool] = (True, False),
    remats: Sequence[Remat] = REMATS,
) -> list[Candidate]:
    """Every combination, those that compile fast first, each once."""
    combinations = itertools.product(scans, batch_sizes, remats)
    return list(dict.fromkeys(Candidate(batch, scan, remat) for scan, batch, remat in combinations))


def with_compute(stage: ResolvedStage, candidate: Candidate) -> ResolvedStage:
    """The stage computed in the candidate's way; its dtype and everything else stays."""
    own = {"scan": candidate.scan, "remat": candidate.remat, "remat_up_to": ()}
    compute = dataclasses.replace(stage.compute, **own)
    return dataclasses.replace(stage, compute=compute)


def search(
    stage: ResolvedStage,
    tried: Sequence[Candidate],
    plan: Callable[[ResolvedStage, int], StepPlan],
) -> Iterator[Trial]:
    """Plans each candidate, one after the other.

    Args:
      stage: the stage.
      tried: what to plan.
      plan: plans a step of a stage that reads so many examples, as `plan_step` does.

    Yields:
      Each trial when it is done, so that a stopped search has the results so far.
    """
    for candidate in tried:
        try:
            step_plan = plan(with_compute(stage, candidate), candidate.batch_size)
        except DoesNotFit:
            step_plan = None
        yield Trial(candidate, step_plan)


def pareto(trials: Sequence[Trial]) -> list[Trial]:
    """Those that fit and that no other beats in time per example and in memory.

    Of trials that are equal in both, all are kept.

    Returns:
      The fastest first.
    """
    front: list[Trial] = []
    fitting = (trial for trial in trials if trial.fits)
    for trial in sorted(fitting, key=_cost):
        least = front[-1] if front else None
        if least is None or _cost(trial) == _cost(least) or trial.peak < least.peak:
            front.append(trial)
    return front


def _cost(trial: Trial) -> tuple[float, int | float]:
    return trial.example_seconds, trial.peak
