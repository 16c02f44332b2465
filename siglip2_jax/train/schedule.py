"""The learning rate's shape over time, as in big_vision's `create_learning_rate_schedule`."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from siglip2_jax.config.optim import Schedule, in_steps
from siglip2_jax.types import ArrayLike

Factor = Callable[[Int[ArrayLike, "*S"]], Float[Array, "*S"]]


def factor(schedule: Schedule, steps: int) -> Factor:
    """The factor that multiplies every update of a stage.

    With s the schedule's clock, w its warm-up, T its end and c its cooldown, it is
    `shape * min(1, s / w) * clip((T - s) / c, 0, 1)`, where `shape` is

    - cosine: `(1 + cos(pi * p)) / 2` with `p = clip((s - w) / (T - w), 0, 1)`;
    - rsqrt: `1 / sqrt(1 + (s - w) / timescale)`, and 1 during warm-up;
    - constant: 1.

    The clock is `begin + step` up to `tail_start * T` (or `begin`, if that is later), from where it
    runs `tail_stretch` times slower: a schedule that is followed from its beginning reaches its end
    after `T * (tail_start + (1 - tail_start) * tail_stretch)` steps.

    Args:
      schedule: what to follow.
      steps: number of steps of the stage.

    Returns:
      A function of the number of updates made before in this stage; it takes integers below 2^24
      (exact in float32) and gives float32 from 0 to 1.

    Raises:
      ValueError: the schedule ends before its warm-up.
    """
    end = schedule.end(steps)
    warmup, cooldown = in_steps(schedule.warmup, end), in_steps(schedule.cooldown, end)
    tail = max(schedule.tail_start * end, schedule.begin)

    def at(step: Int[ArrayLike, "*S"]) -> Float[Array, "*S"]:
        clock = jnp.asarray(step + schedule.begin, jnp.float32)
        if schedule.tail_stretch != 1:
            clock = jnp.minimum(clock, tail) + jnp.maximum(clock - tail, 0) / schedule.tail_stretch
        value = _shape(schedule, clock, warmup, end)
        if warmup:
            value *= jnp.minimum(1, clock / warmup)
        if cooldown:
            value *= jnp.clip((end - clock) / cooldown, 0, 1)
        return value

    return at


def _shape(
    schedule: Schedule, clock: Float[Array, "*S"], warmup: int, end: int
) -> Float[Array, "*S"]:
    """The factor without warm-up and cooldown."""
    past = clock - warmup
    if schedule.kind == "cosine":
        progress = jnp.clip(past / (end - warmup), 0, 1)
        return 0.5 * (1 + jnp.cos(jnp.pi * progress))
    if schedule.kind == "rsqrt":
        return 1 / jnp.sqrt(1 + jnp.maximum(past, 0) / schedule.timescale)
    return jnp.ones_like(clock)
