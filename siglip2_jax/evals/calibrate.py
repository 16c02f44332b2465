"""Fit of a calibration to examples: two numbers by maximum likelihood, and a threshold.

Temperature and bias are those of a logistic regression of matches on cosines, with Platt's targets
(Platt 1999, "Probabilistic outputs for support vector machines"), which keep it finite where a
threshold separates the examples. Intervals come from resampling the images, of which each keeps all
its pairs: pairs of one image are not independent. The interval of a threshold's precision or recall
is moved by the optimism of having chosen it on the same examples: the mean of what thresholds
chosen on resamples promise there beyond what they do on all examples (Efron and Tibshirani 1993,
"An introduction to the bootstrap", chapter 17).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.special import expit

from siglip2_jax.inference.calibration import Goal, Metric

RESAMPLES = 400
FEW_MATCHES, FEW_IMAGES, FEW_ACCEPTED = 20, 20, 20
WIDE = 0.3
_LEVELS = (2.5, 97.5)
_RIDGE = 1e-6


class Pairs(NamedTuple):
    """Scored pairs of images and texts.

    Attributes:
      cosines: of each pair.
      matches: True where they belong together.
      image: number of the pair's image, from 0 up.
    """

    cosines: Float64[np.ndarray, " n"]
    matches: Bool[np.ndarray, " n"]
    image: Int64[np.ndarray, " n"]


class Fit(NamedTuple):
    """Result of `fit`.

    Attributes:
      temperature, bias: fitted to all pairs.
      temperature_interval, bias_interval: in 95 of 100 resamples.
      goal: with its threshold, if one was asked for.
      warnings: sentences on what so few examples do not tell.
    """

    temperature: float
    bias: float
    temperature_interval: tuple[float, float]
    bias_interval: tuple[float, float]
    goal: Goal | None
    warnings: tuple[str, ...]


def fit(pairs: Pairs, wanted: tuple[Metric, float] | None = None, seed: int = 0) -> Fit:
    """Fits temperature, bias and perhaps a threshold.

    Args:
      pairs: the examples.
      wanted: "precision" or "recall", and its value between 0 and 1.
      seed: of the resamples.

    Raises:
      ValueError: there are no matches or nothing but matches, matches score no higher than other
        pairs, or the wanted value is out of its range.
    """
    matches = int(pairs.matches.sum())
    if not 0 < matches < len(pairs.matches):
        raise ValueError(
            f"{matches} of {len(pairs.matches)} pairs of the examples match; expected some that "
            "match and some that do not"
        )
    if wanted and not 0 < wanted[1] < 1:
        raise ValueError(f"the wanted {wanted[0]} is {wanted[1]:g}; expected a number in (0, 1)")
    images = int(pairs.image.max()) + 1
    temperature, bias = fit_logistic(pairs, np.ones(images))
    if temperature <= 0:
        raise ValueError(
            "matching pairs of the examples score no higher than the others, so that no "
            "calibration helps; check the examples' labels and the model"
        )
    counts = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), RESAMPLES)
    counts = [x for x in counts if 0 < pairs.matches @ x[pairs.image] < x[pairs.image].sum()]
    fits = np.array([fit_logistic(pairs, x, (temperature, bias)) for x in counts])
    low, high = np.percentile(fits, _LEVELS, axis=0)
    goal = None
    if wanted is not None:
        goal = _reach(pairs, wanted, (temperature, bias), counts)
    return Fit(
        temperature,
        bias,
        (float(low[0]), float(high[0])),
        (float(low[1]), float(high[1])),
        goal,
        tuple(_warnings(matches, images, goal)),
    )


def fit_logistic(
    pairs: Pairs, counts: np.ndarray, start: tuple[float, float] = (1.0, 0.0)
) -> tuple[float, float]:
    """Temperature and bias of the highest likelihood, by Newton's method.

    Args:
      pairs: the examples.
      counts: number of times that each image counts.
      start: temperature and bias to begin at.
    """
    weights = counts[pairs.image].astype(np.float64)
    positive = weights @ pairs.matches
    negative = weights.sum() - positive
    targets = np.where(pairs.matches, (positive + 1) / (positive + 2), 1 / (negative + 2))
    center = float(weights @ pairs.cosines / weights.sum())
    scale = float(np.sqrt(weights @ (pairs.cosines - center) ** 2 / weights.sum())) or 1.0
    x = np.stack([(pairs.cosines - center) / scale, np.ones_like(pairs.cosines)])
    parameters = np.array([start[0] * scale, start[1] + start[0] * center])

    def loss(at: np.ndarray) -> float:
        logits = at @ x
        return float(weights @ (np.logaddexp(0, logits) - targets * logits))

    value = loss(parameters)
    for _ in range(100):
        probability = expit(parameters @ x)
        gradient = x @ (weights * (probability - targets))
        curvature = (x * (weights * probability * (1 - probability))) @ x.T
        step = np.linalg.solve(curvature + _RIDGE * np.eye(2), gradient)
        size = 1.0
        while (below := loss(parameters - size * step)) > value and size > 1e-6:
            size /= 2
        parameters, progress, value = parameters - size * step, value - below, below
        if progress <= 1e-12 * (1 + abs(value)):
            break
    temperature = float(parameters[0] / scale)
    return temperature, float(parameters[1]) - temperature * center


def choose_cosine(pairs: Pairs, wanted: tuple[Metric, float], weights: np.ndarray) -> float | None:
    """Lowest cosine that reaches a precision, or the highest that reaches a recall.

    Args:
      pairs: the examples.
      wanted: what is to be reached.
      weights: number of times that each pair counts.

    Returns:
      A cosine half-way to the next pair that is refused; None where no cosine reaches it.
    """
    used = weights > 0
    order = np.argsort(-pairs.cosines[used], kind="stable")
    cosines, weights = pairs.cosines[used][order], weights[used][order]
    hits = np.cumsum(weights * pairs.matches[used][order])
    last = np.append(np.diff(cosines) < 0, True)  # of pairs that tie all are accepted
    metric, value = wanted
    if metric == "precision":
        (places,) = np.nonzero(last & (hits >= value * np.cumsum(weights)))
        place = places[-1] if len(places) else None
    else:
        place = np.nonzero(last & (hits >= value * hits[-1]))[0][0]
    if place is None:
        return None
    below = cosines[place + 1] if place + 1 < len(cosines) else cosines[place] - 1e-3
    return float(cosines[place] + below) / 2


def measure(pairs: Pairs, metric: Metric, cosine: float, weights: np.ndarray) -> float:
    """Precision or recall of accepting pairs from a cosine on; NaN where none counts."""
    accepted = weights * (pairs.cosines >= cosine)
    total = accepted.sum() if metric == "precision" else weights @ pairs.matches
    return float(accepted @ pairs.matches / total) if total else np.nan


def reliability(
    probabilities: np.ndarray, matches: np.ndarray, bins: int = 10
) -> list[tuple[float, float, int]]:
    """Mean probability, share of matches and number of pairs, of bins of equally many matches.

    Bins of equal width would leave most of them empty: most pairs do not match.
    """
    order = np.argsort(probabilities, kind="stable")
    places = np.flatnonzero(matches[order])
    cuts = {int(part[-1]) + 1 for part in np.array_split(places, bins) if len(part)}
    edges = sorted({0, len(order)} | cuts - {max(cuts)})
    rows = []
    for first, end in zip(edges[:-1], edges[1:], strict=True):
        part = order[first:end]
        rows.append((float(probabilities[part].mean()), float(matches[part].mean()), len(part)))
    return rows


def _reach(
    pairs: Pairs,
    wanted: tuple[Metric, float],
    fitted: tuple[float, float],
    counts: list[np.ndarray],
) -> Goal:
    """The goal with its threshold, and the interval of what that does on other images."""
    metric, value = wanted
    ones = np.ones(len(pairs.cosines))
    cosine = choose_cosine(pairs, wanted, ones)
    if cosine is None:
        return Goal(metric, value, None, None, (0.0, 1.0), 0)
    values, optimism = [], []
    for count in counts:
        weights = count[pairs.image].astype(np.float64)
        values.append(measure(pairs, metric, cosine, weights))
        if (chosen := choose_cosine(pairs, wanted, weights)) is not None:
            optimism.append(
                measure(pairs, metric, chosen, weights) - measure(pairs, metric, chosen, ones)
            )
    bounds = np.nanpercentile(values, _LEVELS) - np.nanmean(optimism or [0.0])
    low, high = np.clip(bounds, 0.0, 1.0)
    temperature, bias = fitted
    return Goal(
        metric,
        value,
        float(expit(temperature * cosine + bias)),
        measure(pairs, metric, cosine, ones),
        (float(low), float(high)),
        int((pairs.cosines >= cosine).sum()),
    )


def _warnings(matches: int, images: int, goal: Goal | None) -> list[str]:
    sentences = []
    if matches < FEW_MATCHES or images < FEW_IMAGES:
        sentences.append(
            f"{matches} matches in {images} images are too few to claim anything; give at least "
            f"{FEW_MATCHES} matches in {FEW_IMAGES} images"
        )
    if goal is None:
        return sentences
    low, high = goal.interval
    if goal.threshold is None:
        sentences.append(
            f"no threshold reaches a {goal.metric} of {goal.wanted:g} on the examples; ask for "
            "less, or use a better model"
        )
    elif goal.accepted < FEW_ACCEPTED or high - low > WIDE:
        sentences.append(
            f"the threshold accepts {goal.accepted} pairs of the examples, and its {goal.metric} "
            f"on other images is between {low:.0%} and {high:.0%}: too few examples to claim "
            f"{goal.wanted:.0%}"
        )
    return sentences
