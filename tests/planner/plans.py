"""Plans made up for tests."""

from siglip2_jax.planner.plan import StepPlan
from siglip2_jax.train.chips import V5E


def step_plan(peak: int = 2**30, seconds: float = 1.0, batch_size: int = 32) -> StepPlan:
    """A step on four chips of v5e that takes so long and so many bytes, and does nothing."""
    return StepPlan(
        stage="main",
        budget=64,
        batch_size=batch_size,
        chips=4,
        chip=V5E,
        share=1.0,
        steps=1,
        memory={"peak": peak},
        model_flops=1.0,
        flops=1,
        hbm_bytes=1,
        collectives={},
        scheduled=float(seconds),
        operations=(),
        untimed=0,
        uncounted=0,
    )
