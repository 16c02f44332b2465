"""Cores that feed the chips of a host: enough, and not one too many."""

from fractions import Fraction

import pytest

from siglip2_jax.planner.host_cores import CHIPS_PER_HOST, IMAGES_PER_CORE_SECOND, host_cores_needed


@pytest.mark.parametrize(
    ("rate", "core", "chips"),
    [(0.5, 101.7, 1), (87.3, 7.0, 4), (100.0, 64.0, 8), (4096.0, 101.7, 8)],
)
def test_enough_and_no_more(rate, core, chips):
    cores = host_cores_needed(rate, core, chips)
    needed = Fraction(rate) * chips / Fraction(core)
    assert cores >= 1 and cores >= needed
    assert cores == 1 or cores - 1 < needed


def test_defaults_and_whole_numbers():
    assert host_cores_needed(2 * IMAGES_PER_CORE_SECOND) == 2 * CHIPS_PER_HOST
    assert host_cores_needed(0.3, 0.1, 1) == 3  # 0.3 / 0.1 is 2.9999999999999996
    assert host_cores_needed(1.1, 1.1 / 3, 1) == 3
    assert host_cores_needed(1e-6) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0,), "examples_per_second must be a finite rate above 0, got 0.0"),
        ((float("nan"),), "examples_per_second must be"),
        ((1.0, float("inf")), "images_per_core_second must be"),
        ((1.0, -2.0), "images_per_core_second must be a finite rate above 0, got -2.0"),
        ((1.0, 1.0, 0), "chips must be at least 1, got 0"),
    ],
)
def test_senseless_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        host_cores_needed(*arguments)
