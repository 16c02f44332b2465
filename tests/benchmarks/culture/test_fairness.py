"""Disparity and bias, against the published definitions counted by hand."""

import numpy as np
import pytest

from siglip2_jax.benchmarks.culture.fairness import (
    accuracy_by_group,
    first_share,
    income_disparity,
    representation_bias,
)


def test_disparity_is_between_the_best_and_the_worst_group():
    groups = np.repeat(["q1", "q2", "q3"], [4, 2, 10])
    correct = np.array([1, 0, 0, 0] + [1, 1] + [1] * 7 + [0] * 3, bool)
    assert accuracy_by_group(correct, groups) == {"q1": 0.25, "q2": 1.0, "q3": 0.7}
    assert income_disparity(correct, groups) == 0.75
    turned = np.random.default_rng(0).permutation(16)
    assert income_disparity(correct[turned], groups[turned]) == 0.75
    assert income_disparity(np.ones(16, bool), groups) == 0
    numbers = np.repeat([30, 200], [4, 12])  # groups may be numbers
    assert income_disparity(correct, numbers) == 9 / 12 - 1 / 4


def test_disparity_needs_two_groups():
    with pytest.raises(ValueError, match="got the group 'rich' only"):
        income_disparity(np.ones(3, bool), np.array(["rich"] * 3))
    with pytest.raises(ValueError, match="got no answers"):
        income_disparity(np.ones(0, bool), np.array([], str))


def test_bias_is_the_deviation_from_a_half():
    """The paper's own example: 35.5 % means that 85.5 % are matched to men."""
    men = np.where(np.arange(200) < 171, 0.3, 0.1)
    women = np.full(200, 0.2)
    assert first_share(men, women) == 0.855
    assert representation_bias(men, women) == pytest.approx(0.355, abs=1e-15)
    assert representation_bias(women, men) == pytest.approx(0.355, abs=1e-15)


def test_ties_are_no_preference_and_unreadable_photos_do_not_count():
    same = np.zeros(7)
    assert representation_bias(same, same) == 0
    men, women = np.array([1.0, np.nan, 1.0, 0.0]), np.array([0.0, 0.0, np.nan, 0.0])
    assert first_share(men, women) == 0.75
    with pytest.raises(ValueError, match="none of 2 images has scores"):
        representation_bias(np.full(2, np.nan), np.zeros(2))
    with pytest.raises(ValueError, match="none of 0 images has scores"):
        representation_bias(np.zeros(0), np.zeros(0))
