"""Plans made up for tests."""

import dataclasses

from siglip2_jax.models.config import ModelConfig, two_towers
from siglip2_jax.planner.embed import EmbedPlan
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


def embed_plan(batch_size=800, seconds=0.04, gib=2.0) -> EmbedPlan:
    """A batch of eight chips, at 2,500 images a second on each."""
    return EmbedPlan(
        patches=256,
        image_bytes=800_000,
        untimed=0,
        batch_size=batch_size,
        chips=8,
        chip=V5E,
        memory={"peak": int(gib * 2**30)},
        model_flops=1.0,
        flops=1,
        hbm_bytes=1,
        collectives={},
        scheduled=seconds,
    )


def small_model() -> ModelConfig:
    """B/16 256 with one layer a tower."""
    config = two_towers("B", patch_size=16, image_size=256)
    vision, text = (dataclasses.replace(x, depth=1) for x in (config.vision, config.text))
    return ModelConfig(vision=vision, text=text)
