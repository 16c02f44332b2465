"""Budgets of steps, and a reading that continues from two integers."""

import pickle

import numpy as np
import pytest

from siglip2_jax.data.lengths import Lengths, StepSchedule


def test_examples_are_shared_equally_though_the_longest_has_half_the_batch():
    lengths = Lengths()
    np.testing.assert_allclose(lengths.probabilities, np.array([1, 1, 1, 1, 2]) / 6, rtol=1e-15)
    budgets = lengths.sample(3, 60_000)
    sizes = np.array([lengths.batch_size(int(budget), 64) for budget in budgets])
    seen = np.array([sizes[budgets == budget].sum() for budget in lengths.budgets])
    # Five standard deviations of a binomial count of steps.
    np.testing.assert_allclose(seen / seen.sum(), 0.2, atol=5 * np.sqrt(0.2 * 0.8 / 60_000))


def test_shares_and_scales():
    lengths = Lengths((16, 64), shares=(3.0, 1.0), batch_scale=((16, 2.0), (64, 0.5)))
    np.testing.assert_allclose(lengths.probabilities, [1.5 / 3.5, 2 / 3.5], rtol=1e-15)
    assert lengths.batch_size(16, 4) == 8 and lengths.batch_size(64, 4) == 2
    assert set(Lengths((16, 64), shares=(0.0, 1.0)).sample(0, 500)) == {64}


def test_steps_do_not_depend_on_how_many_there_are():
    lengths = Lengths()
    long = lengths.sample(7, 1000)
    for steps in (0, 1, 10, 999):
        np.testing.assert_array_equal(lengths.sample(7, steps), long[:steps])
    assert not np.array_equal(lengths.sample(8, 1000), long)
    # A run's lengths are part of what makes it repeatable: they must not change with a release.
    assert lengths.sample(0, 8).tolist() == [128, 1024, 576, 1024, 1024, 576, 576, 1024]


def test_reading_continues():
    lengths = Lengths((16, 64), batch_scale=((64, 0.5),))
    whole = list(lengths.reading(5, 20, 8))
    assert [step for step, *_ in whole] == list(range(20))
    position = 0
    for step, budget, size, start in whole:
        assert start == position and size == {16: 8, 64: 4}[budget]
        rest = lengths.reading(5, 20, 8, step=step, position=position)
        assert list(rest) == whole[step:]
        position += size
    assert rest.end == position
    other = list(lengths.reading(5, 20, 16, step=12, position=whole[12][3]))
    assert [row[:2] for row in other] == [row[:2] for row in whole[12:]]
    assert other[0][3] == whole[12][3] and other[1][3] == whole[12][3] + other[0][2]


def test_any_step_is_found_without_those_before_it():
    """Across the strides at which positions are kept; a schedule of a budget has no arrays."""
    lengths = Lengths((16, 64, 256), batch_scale=((64, 0.5), (256, 3.0)))
    for reading in (
        lengths.reading(1, 5000, 8, step=700, position=123),
        StepSchedule(((16, 8),), 4300, step=700, position=123),
    ):
        rows = list(reading)
        assert len(rows) == len(reading) == 4300
        sizes = np.array([size for *_, size, _ in rows])
        positions = 123 + np.cumsum(sizes) - sizes
        np.testing.assert_array_equal([row[3] for row in rows], positions)
        assert reading.end == positions[-1] + sizes[-1]
        assert [reading[i] for i in (0, 1023, 1024, 4096, 4299)] == [
            rows[i] for i in (0, 1023, 1024, 4096, 4299)
        ]
        assert set(reading.budgets) == {row[1] for row in rows}
        with pytest.raises(IndexError, match="there are 4300 steps, no number 4300"):
            reading[4300]
    assert len(pickle.dumps(StepSchedule(((16, 8),), 10**6))) < 500
    assert len(pickle.dumps(lengths.reading(1, 10**5, 8))) < 1.1 * 10**5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budgets": ()}, "budgets must be different"),
        ({"budgets": (64, 64)}, "budgets must be different"),
        ({"budgets": (0,)}, "budgets must be different"),
        ({"budgets": (16, 64), "shares": (1.0,)}, "shares must be one number"),
        ({"budgets": (16, 64), "shares": (0.0, 0.0)}, "shares must be one number"),
        ({"budgets": (16, 64), "shares": (-1.0, 2.0)}, "shares must be one number"),
        ({"batch_scale": ((1024, 0.0),)}, "factors above 0"),
        ({"batch_scale": ((1024, float("nan")),)}, "factors above 0"),
    ],
)
def test_nonsense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Lengths(**options)


def test_batches_that_do_not_scale_are_refused():
    with pytest.raises(ValueError, match=r"a batch of 3 scaled by 0.5 for budget 1024 is 1.5"):
        Lengths().reading(0, 10, 3)
    with pytest.raises(ValueError, match="must be at least 1"):
        StepSchedule(((16, 0),), 1)
    with pytest.raises(ValueError, match="step and position"):
        StepSchedule(((16, 1),), 1, None, 0, -1)
