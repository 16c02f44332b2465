"""Fits of calibrations: against another minimiser, brute force, and data whose truth is known."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from siglip2_jax.evals import calibrate
from siglip2_jax.evals.calibrate import (
    Pairs,
    choose_cosine,
    fit,
    fit_logistic,
    measure,
    reliability,
)

TRUE = 40.0, -12.0


def draw_pairs(images: int, labels: int, seed: int) -> Pairs:
    """Cosines whose matches follow a logistic law, `labels` pairs an image."""
    rng = np.random.default_rng(seed)
    cosines = rng.normal(0.15, 0.1, images * labels)
    matches = rng.random(len(cosines)) < expit(TRUE[0] * cosines + TRUE[1])
    return Pairs(cosines, matches, np.repeat(np.arange(images), labels))


def test_the_fit_is_that_of_another_minimiser():
    pairs = draw_pairs(50, 8, 0)
    counts = np.random.default_rng(1).integers(0, 3, 50)

    def loss(parameters):
        weights = counts[pairs.image]
        positive, negative = weights @ pairs.matches, weights @ ~pairs.matches
        target = np.where(pairs.matches, (positive + 1) / (positive + 2), 1 / (negative + 2))
        logits = parameters[0] * pairs.cosines + parameters[1]
        return weights @ (np.logaddexp(0, logits) - target * logits)

    expected = minimize(loss, [10.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-8}).x
    (fitted,) = fit_logistic(pairs, counts[None])
    np.testing.assert_allclose(fitted, expected, rtol=1e-5)


@pytest.mark.parametrize("block", [1, 1000, 1 << 16])
@pytest.mark.parametrize("start", [(1.0, 0.0), TRUE, (3000.0, -900.0)])  # the last overshoots
def test_many_fits_are_each_at_the_bottom(monkeypatch, block, start):
    monkeypatch.setattr(calibrate, "_BLOCK", block)
    pairs = draw_pairs(30, 8, 0)
    counts = np.random.default_rng(1).multinomial(30, np.full(30, 1 / 30), 20)
    for count, (temperature, bias) in zip(counts, fit_logistic(pairs, counts, start), strict=True):
        weights = count[pairs.image]
        positive, negative = weights @ pairs.matches, weights @ ~pairs.matches
        target = np.where(pairs.matches, (positive + 1) / (positive + 2), 1 / (negative + 2))
        excess = weights * (expit(temperature * pairs.cosines + bias) - target)
        assert abs(excess.sum()) < 1e-9 and abs(excess @ pairs.cosines) < 1e-9


@pytest.mark.slow
def test_truth_lies_in_the_intervals():
    inside = 0
    for seed in range(20):
        result = fit(draw_pairs(100, 10, seed))
        low, high = result.temperature_interval
        inside += low <= TRUE[0] <= high
        assert low < result.temperature < high
        assert result.bias_interval[0] < result.bias < result.bias_interval[1]
    assert inside >= 16  # 95 in 100; fewer than 16 of 20 come once in 400 times


def test_separable_examples_stay_finite():
    pairs = Pairs(np.array([0.1, 0.2, 0.3, 0.4]), np.arange(4) > 1, np.arange(4))
    ((temperature, bias),) = fit_logistic(pairs, np.ones((1, 4), int))
    assert 0 < temperature < 100 and temperature * 0.25 + bias == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("metric", ["precision", "recall"])
@pytest.mark.parametrize("wanted", [0.5, 0.8, 0.95])
def test_thresholds_are_those_of_brute_force(metric, wanted):
    pairs = draw_pairs(30, 6, 3)
    cosines = pairs.cosines.round(2)  # many ties
    order = np.argsort(-cosines)
    pairs = Pairs(cosines[order], pairs.matches[order], pairs.image[order])
    counts = np.random.default_rng(4).integers(0, 3, (5, 30))
    for count in counts:
        weights = count[pairs.image]
        cosine, value = choose_cosine(pairs, (metric, wanted), weights)
        reached = {}
        for candidate in np.unique(pairs.cosines[weights > 0]):
            accepted = weights * (pairs.cosines >= candidate)
            total = accepted.sum() if metric == "precision" else weights @ pairs.matches
            if accepted @ pairs.matches / total >= wanted:
                reached[candidate] = accepted @ pairs.matches / total
        best = min(reached) if metric == "precision" else max(reached)
        others = pairs.cosines[(weights > 0) & (pairs.cosines < best)]
        below = others.max() if len(others) else best - 1e-3
        assert cosine == pytest.approx((best + below) / 2, abs=1e-12)
        assert value == pytest.approx(reached[best], abs=1e-12)
        assert measure(pairs, metric, cosine, counts)[counts.tolist().index(count.tolist())] == (
            pytest.approx(value, abs=1e-12)
        )


@pytest.mark.slow
def test_the_interval_holds_the_precision_on_other_images():
    inside, widths = 0, []
    for seed in range(20):
        result = fit(draw_pairs(100, 10, seed), ("precision", 0.8), seed)
        unseen = draw_pairs(5000, 10, 100 + seed)
        logits = result.temperature * unseen.cosines + result.bias
        accepted = expit(logits) >= result.goal.threshold
        low, high = result.goal.interval
        inside += low <= unseen.matches[accepted].mean() <= high
        widths.append(high - low)
        assert result.goal.measured >= 0.8 and low < 0.8 < high
    assert inside >= 16
    assert np.mean(widths) < 0.3


def test_few_examples_claim_nothing():
    result = fit(draw_pairs(12, 10, 0), ("precision", 0.9))
    assert "too few to claim anything" in result.warnings[0]
    assert not fit(draw_pairs(100, 10, 0), ("recall", 0.9)).warnings


def test_precision_out_of_reach():
    pairs = draw_pairs(60, 5, 0)
    highest = np.argmax(pairs.cosines)
    matches = pairs.matches.copy()
    matches[highest] = False
    result = fit(pairs._replace(matches=matches), ("precision", 0.999))
    assert result.goal.threshold is None
    assert "no threshold reaches a precision of 0.999" in result.warnings[-1]


@pytest.mark.parametrize(
    ("matches", "wanted", "message"),
    [
        ([False] * 6, None, "^0 of 6 pairs of the examples match; expected some that match and"),
        ([True] * 3 + [False] * 3, None, "^matching pairs of the examples score no higher than"),
        ([False] * 3 + [True] * 3, ("recall", 1.5), r"^the wanted recall is 1.5; expected a numb"),
    ],
)
def test_refused(matches, wanted, message):
    pairs = Pairs(np.linspace(0, 1, 6), np.array(matches), np.arange(6))
    with pytest.raises(ValueError, match=message):
        fit(pairs, wanted)


def test_bins_hold_all_pairs_and_as_many_matches():
    pairs = draw_pairs(200, 10, 0)
    probabilities = expit(TRUE[0] * pairs.cosines + TRUE[1])
    rows = reliability(probabilities, pairs.matches, bins=5)
    assert sum(count for *_, count in rows) == 2000
    hits = [share * count for _, share, count in rows]
    assert max(hits) - min(hits) <= 2 and sum(hits) == pytest.approx(pairs.matches.sum())
    for mean, share, count in rows:  # it is calibrated by construction
        assert abs(mean - share) < 4 * np.sqrt(mean * (1 - mean) / count)
