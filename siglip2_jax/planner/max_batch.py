"""The largest batch whose step fits into a chip's memory."""

from __future__ import annotations

import math

from jax.sharding import Mesh

from siglip2_jax.config import ResolvedStage
from siglip2_jax.planner.plan import StepPlan, plan_step
from siglip2_jax.planner.results import NO_RESULTS, Results


def largest_batch(
    stage: ResolvedStage, budget: int, mesh: Mesh, results: Results = NO_RESULTS
) -> StepPlan:
    """The largest batch whose step fits into a chip's memory, within one per cent of it.

    Memory grows nearly in proportion to the batch, so that two programs tell where the limit is;
    the answer is compiled, never only predicted.

    Raises:
      ValueError: not even one example a chip fits.
    """
    unit = mesh.size * stage.optim.accumulate
    first = plan_step(stage, budget, mesh, results=results)
    limit = first.chip.hbm_bytes
    low, high = (unit, 0), (first.batch_size, first.needed_bytes)
    if high[0] > unit:
        least = plan_step(stage, budget, mesh, unit, results)
        low = (unit, least.needed_bytes)
        best = first if first.fits else least
        if not best.fits:
            raise ValueError(
                f"stage {first.stage!r} at {budget} patches needs {low[1] / 2**30:.1f} GiB a chip "
                f"with one example on each, more than {limit / 2**30:.2f} GiB; use more chips, "
                f"{stage.least_memory} or --set optim.kind=adafactor"
            )
    else:
        best = first
    tried = {first.batch_size}
    for _ in range(6):
        slope = (high[1] - low[1]) / max(high[0] - low[0], 1)
        guess = low[0] + (limit - low[1]) / max(slope, 1)
        guess = max(unit, math.floor(guess / unit) * unit)
        if guess in tried or abs(guess - best.batch_size) < 0.01 * best.batch_size:
            break
        tried.add(guess)
        plan = plan_step(stage, budget, mesh, guess, results)
        high = (guess, plan.needed_bytes)
        if plan.fits and guess > best.batch_size:
            best = plan
    return best
