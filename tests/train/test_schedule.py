"""The learning rate's shape against closed forms in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siglip2_jax.config import Schedule
from siglip2_jax.train.schedule import factor

STEPS = 1000


def values(schedule: Schedule, steps: int, at) -> np.ndarray:
    return np.asarray(jax.jit(jax.vmap(factor(schedule, steps)))(jnp.asarray(at, jnp.int32)))


def cosine(clock: float, warmup: int, total: int) -> float:
    progress = min(max((clock - warmup) / (total - warmup), 0.0), 1.0)
    return 0.5 * (1 + math.cos(math.pi * progress)) * (min(1.0, clock / warmup) if warmup else 1.0)


@pytest.mark.parametrize("warmup", [0, 1, 70])
def test_cosine(warmup):
    steps = np.arange(STEPS + 50)
    found = values(Schedule(warmup=warmup), STEPS, steps)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [cosine(s, warmup, STEPS) for s in steps], atol=3e-7)
    assert (found[STEPS:] == 0).all()
    assert found.argmax() == warmup and found[warmup] == 1


def test_cosine_of_the_published_length():
    """40B examples at 32k with 20k steps of warm-up (SigLIP 2, section 2.1)."""
    total, warmup = 1_220_703, 20_000
    steps = np.r_[0, 1, 19_999, 20_000, np.arange(5) * 300_000, total - 1, total]
    found = values(Schedule(warmup=warmup), total, steps)
    np.testing.assert_allclose(found, [cosine(s, warmup, total) for s in steps], atol=3e-7)


def test_rsqrt_with_cooldown():
    schedule = Schedule(kind="rsqrt", warmup=100, timescale=300, cooldown=200)
    steps = np.arange(STEPS + 2)
    expected = [
        math.sqrt(300 / (300 + max(s - 100, 0))) * min(1, s / 100) * min(1, max(STEPS - s, 0) / 200)
        for s in steps
    ]
    np.testing.assert_allclose(values(schedule, STEPS, steps), expected, atol=3e-7)


def test_constant():
    found = values(Schedule(kind="constant", warmup=4), STEPS, [0, 1, 4, 500, STEPS])
    np.testing.assert_array_equal(found, np.float32([0, 0.25, 1, 1, 1]))


def test_stage_within_a_schedule_continues_it():
    whole = values(Schedule(warmup=70), STEPS, np.arange(800, STEPS))
    given = Schedule(warmup=70, total_steps=STEPS, begin=800)
    derived = Schedule(warmup=70, begin=800)
    np.testing.assert_array_equal(values(given, 200, np.arange(200)), whole)
    np.testing.assert_array_equal(values(derived, 200, np.arange(200)), whole)


def test_stretched_tail():
    """Same path from 90% on, 3.75 times slower (SigLIP 2, section 2.4.2)."""
    total, stretch = 2000, 3.75
    length = int(total * (0.9 + 0.1 * stretch))
    assert length == 2550
    schedule = Schedule(warmup=100, total_steps=total, tail_stretch=stretch)
    steps = np.arange(length + 3)
    expected = [cosine(s if s < 1800 else 1800 + (s - 1800) / stretch, 100, total) for s in steps]
    found = values(schedule, length, steps)
    np.testing.assert_allclose(found, expected, atol=3e-7)
    assert (found[length:] == 0).all() and (found[:length][1:] > 0).all()
    falls = -np.diff(found[100:])
    assert falls.max() < 1e-3  # no jump anywhere, least of all where the tail begins


def test_stretched_tail_begins_with_the_stage():
    """A branch at 90% that is not exactly at 0.9 T joins the schedule without a jump."""
    total, begin = 1_220_703, 1_098_633
    schedule = Schedule(warmup=20_000, total_steps=total, begin=begin, tail_stretch=3.75)
    steps = np.r_[0, 1, 100_000, 457_700, 457_763]
    found = values(schedule, 457_764, steps)
    expected = [cosine(begin + s / 3.75, 20_000, total) for s in steps]
    np.testing.assert_allclose(found, expected, atol=3e-7)
    assert found[-1] == 0


@pytest.mark.parametrize("steps", [2, 30, 1000])
def test_shares_follow_the_length(steps):
    """A tenth to rise and a quarter to fall, of the stage or of a schedule it is a part of."""
    shares = {"kind": "rsqrt", "warmup": 0.1, "cooldown": 0.25}
    numbers = {"kind": "rsqrt", "warmup": round(steps / 10), "cooldown": round(steps / 4)}
    at = np.arange(steps)
    np.testing.assert_array_equal(
        values(Schedule(**shares), steps, at), values(Schedule(**numbers), steps, at)
    )
    part = values(Schedule(**shares, total_steps=steps), max(1, steps // 2), at)
    np.testing.assert_array_equal(part, values(Schedule(**numbers), steps, at))


def test_schedule_shorter_than_its_warmup():
    with pytest.raises(ValueError, match="warmup is 100 steps, but the schedule ends at step 10"):
        factor(Schedule(warmup=100), 10)
