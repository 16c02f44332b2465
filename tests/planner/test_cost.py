"""Cost of a run, computed by hand, and its table."""

import dataclasses

import pytest
from planner.plans import step_plan

from siglip2_jax.config import Origin
from siglip2_jax.planner.cost import cost_of, cost_table
from siglip2_jax.planner.estimate import DoesNotFit
from siglip2_jax.planner.host_input import Assumptions
from siglip2_jax.planner.many import Job

HALF = dataclasses.replace(step_plan(seconds=0.5, batch_size=128), steps=172_800, share=0.5)
WHOLE = dataclasses.replace(step_plan(seconds=0.25, batch_size=128), steps=345_600, chips=8)


def test_half_a_day_of_four_chips_and_a_day_of_eight():
    cost = cost_of([HALF, WHOLE], Assumptions(), 1.5)
    assert (cost.days, cost.chip_hours, cost.dollars) == (1.5, 12 * 4 + 24 * 8, 360.0)
    assert cost.request_dollars == pytest.approx((86_400 + 345_600) * 0.0004 / 1000)
    assert cost_of([HALF], Assumptions(), None).dollars is None


def table(*answers, price=None):
    jobs = [Job(Origin("x"), f"stage{i}", 256, "v5e:2x2", 1) for i in range(len(answers))]
    return cost_table(list(zip(jobs, answers, strict=True)), "4 chips", Assumptions(), price)


def test_the_table():
    lines = table(HALF, WHOLE, price=1.5).splitlines()
    assert lines[0] == "4 chips"
    assert lines[1].split() == "stage patches batch ms MFU GiB days chip-hours dollars".split()
    assert lines[2].split() == "stage0 256 128 500.0 0.000 1.00 0.50 48 72".split()
    assert lines[4].split() == "total 1.50 240 360".split()
    assert len({len(line) for line in lines[1:5]}) == 1  # columns end below each other
    assert lines[-1] == "0.17 dollars of requests from a store, at 0.0004 per 1,000"
    assert "dollars" not in table(HALF).splitlines()[1]


def test_what_does_not_fit_is_not_in_the_total():
    large = dataclasses.replace(WHOLE, memory={"peak": 2**35})
    refused = DoesNotFit("stage 'stage2' does not fit (too large); use more chips")
    lines = table(HALF, large, refused, price=1.5).splitlines()
    assert "32.00, does not fit" in lines[3]
    assert lines[4].split() == "stage2 256 does not fit".split()
    assert lines[5].split() == "total of what fits 0.50 48 72".split()
    assert lines[6] == str(refused)
    gib = 2**30
    tight = dataclasses.replace(WHOLE, memory={"peak": 15 * gib, "waiting": 3 * gib // 4})
    assert tight.fits  # in 15.75 GiB
    over = dataclasses.replace(tight, memory=tight.memory | {"waiting": 3 * gib // 4 + 1})
    assert "15.00, does not fit" in table(HALF, over).splitlines()[3]
