"""Cost of a run: days, chip-hours and money of all its stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from siglip2_jax.planner.calibration import CALIBRATION
from siglip2_jax.planner.estimate import DoesNotFit
from siglip2_jax.planner.host_input import Assumptions, request_dollars
from siglip2_jax.planner.many import Answer, Job
from siglip2_jax.planner.plan import StepPlan
from siglip2_jax.train.chips import GIB

_HEAD = ("stage", "patches", "batch", "ms", "MFU", "GiB", "days", "chip-hours")
_NOTE = "(estimates of the steps alone; evaluation, checkpoints, waits and restarts come on top)"


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of all steps of some plans, one after the other.

    Attributes:
      days: of the whole slice.
      chip_hours: of all chips together.
      dollars: for these; None where no price is known.
      request_dollars: for reads from a store, where the data is in one.
    """

    days: float
    chip_hours: float
    dollars: float | None
    request_dollars: float


def cost_of(plans: Sequence[StepPlan], assumed: Assumptions, price: float | None) -> Cost:
    """Sums up plans of different steps.

    Args:
      plans: those that a run executes.
      assumed: what is not known of the data.
      price: dollars that a chip costs for an hour.
    """
    hours = sum(plan.chip_hours for plan in plans)
    return Cost(
        days=sum(plan.days for plan in plans),
        chip_hours=hours,
        dollars=None if price is None else hours * price,
        request_dollars=request_dollars(plans, assumed),
    )


def cost_table(
    answers: Sequence[tuple[Job, Answer]],
    where: str,
    assumed: Assumptions,
    price: float | None = None,
) -> str:
    """A row for each step of a run, and their total.

    Args:
      answers: of all its stages and lengths.
      where: the slice, in words.
      assumed: as of `cost_of`.
      price: the same.

    Returns:
      Lines without a last newline.
    """
    plans = [answer for _, answer in answers if isinstance(answer, StepPlan) and answer.fits]
    total = cost_of(plans, assumed, price)
    rows = [[*_HEAD, "" if price is None else "dollars"]]
    rows += [_row(job, answer, price) for job, answer in answers]
    last = "total" if len(plans) == len(answers) else "total of what fits"
    rows.append([last, "", "", "", "", "", *_cells(total)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]
    reasons = [str(answer) for _, answer in answers if isinstance(answer, DoesNotFit)]
    reads = (
        f"{total.request_dollars:,.2f} dollars of requests from a store, at "
        f"{assumed.dollars_per_request * 1000:g} per 1,000"
    )
    return "\n".join([where, *lines, *reasons, _NOTE, CALIBRATION.note, reads])


def _row(job: Job, answer: Answer, price: float | None) -> list[str]:
    name = [job.stage, f"{job.budget:,}"]
    if isinstance(answer, DoesNotFit):
        return [*name, "", "", "", "does not fit", "", "", ""]
    return [
        *name,
        f"{answer.batch_size:,}",
        f"{answer.seconds * 1e3:,.1f}",
        f"{answer.mfu:.3f}",
        f"{answer.memory['peak'] / GIB:.2f}" + ("" if answer.fits else ", does not fit"),
        *_cells(cost_of([answer], Assumptions(), price)),
    ]


def _cells(cost: Cost) -> list[str]:
    dollars = "" if cost.dollars is None else f"{cost.dollars:,.0f}"
    return [f"{cost.days:,.2f}", f"{cost.chip_hours:,.0f}", dollars]
