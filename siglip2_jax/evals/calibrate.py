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
_BLOCK = 1 << 16  # pairs times fits at once, which a core's cache holds


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
    order = np.argsort(-pairs.cosines, kind="stable")  # once, for all resamples
    pairs = Pairs(pairs.cosines[order], pairs.matches[order], pairs.image[order])
    images = int(pairs.image.max()) + 1
    ((temperature, bias),) = fit_logistic(pairs, np.ones((1, images), np.int64)).tolist()
    if temperature <= 0:
        raise ValueError(
            "matching pairs of the examples score no higher than the others, so that no "
            "calibration helps; check the examples' labels and the model"
        )
    counts = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), RESAMPLES)
    per_image = np.stack(
        [np.bincount(pairs.image[x], minlength=images) for x in (pairs.matches, ~pairs.matches)]
    )
    counts = counts[(counts @ per_image.T > 0).all(axis=1)]
    fits = fit_logistic(pairs, counts, (temperature, bias))
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
    pairs: Pairs,
    counts: Int64[np.ndarray, "r images"],
    start: tuple[float, float] = (1.0, 0.0),
) -> Float64[np.ndarray, "r 2"]:
    """Temperatures and biases of the highest likelihood, by Newton's method.

    Args:
      pairs: the examples.
      counts: number of times that each image counts, for one fit or many.
      start: temperature and bias to begin at.
    """
    center, scale = pairs.cosines.mean(), pairs.cosines.std() or 1.0
    x = (pairs.cosines - center) / scale
    first = np.array([start[0] * scale, start[1] + start[0] * center])
    size = max(1, _BLOCK // len(x))
    blocks = (counts[i : i + size, pairs.image] for i in range(0, len(counts), size))
    fits = np.concatenate(
        [_newton(x, pairs.matches, weights.astype(float), first) for weights in blocks]
    )
    temperatures = fits[:, 0] / scale
    return np.stack([temperatures, fits[:, 1] - temperatures * center], axis=1)


def _newton(
    x: Float64[np.ndarray, " n"],
    matches: Bool[np.ndarray, " n"],
    weights: Float64[np.ndarray, "r n"],
    first: Float64[np.ndarray, " 2"],
) -> Float64[np.ndarray, "r 2"]:
    """Slopes and intercepts of logistic regressions, each with weights of its own."""
    # Sums by einsum, not by matrix products: for two columns BLAS would start threads.
    powers = np.stack([x * x, x, np.ones_like(x)])
    (x_yes, yes), (x_no, no) = (
        np.einsum("rn,kn->kr", weights, powers[1:] * y) for y in (matches, ~matches)
    )
    pull = np.stack([x_yes, yes], axis=1) * ((yes + 1) / (yes + 2))[:, None]
    pull += np.stack([x_no, no], axis=1) / (no + 2)[:, None]

    def evaluate(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Loss of each row, and probabilities."""
        logits = at[:, :1] * x + at[:, 1:]
        small = np.exp(-np.abs(logits))
        softplus = np.maximum(logits, 0) + np.log1p(small)
        loss = np.einsum("rn,rn->r", weights, softplus) - (at * pull).sum(axis=1)
        return loss, 0.5 + np.copysign(0.5 - small / (1 + small), logits)

    at = first[None]  # the same for all, so that the first pass is over the pairs alone
    loss, probability = evaluate(at)
    for _ in range(100):
        expected = weights * probability
        gradient = np.einsum("rn,kn->rk", expected, powers[1:]) - pull
        moments = np.einsum("rn,kn->rk", expected * (1 - probability), powers)
        curvature = moments[:, [[0, 1], [1, 2]]] + _RIDGE * np.eye(2)
        step = np.linalg.solve(curvature, gradient[..., None])[..., 0]
        moving = (step * gradient).sum(axis=1) > 1e-12 * (1 + np.abs(loss))
        if not moving.any():
            return at - step
        size = np.ones((len(weights), 1))
        before = loss
        for _ in range(20):
            loss, probability = evaluate(at - size * step)
            worse = moving & (loss > before)
            if not worse.any():
                break
            size[worse] /= 2
        at = at - size * step
    return at


def choose_cosine(
    pairs: Pairs, wanted: tuple[Metric, float], weights: np.ndarray
) -> tuple[float, float] | None:
    """Lowest cosine that reaches a precision, or the highest that reaches a recall.

    Args:
      pairs: the examples, highest cosines first.
      wanted: what is to be reached.
      weights: number of times that each pair counts.

    Returns:
      A cosine half-way to the next pair that is refused, and the precision or recall there; None
      where no cosine reaches it.
    """
    used = np.flatnonzero(weights)
    cosines, weights = pairs.cosines[used], weights[used]
    hits = np.cumsum(weights * pairs.matches[used])
    last = np.append(cosines[1:] < cosines[:-1], True)  # of pairs that tie all are accepted
    metric, value = wanted
    totals = np.cumsum(weights) if metric == "precision" else np.full_like(hits, hits[-1])
    (places,) = np.nonzero(last & (hits >= value * totals))
    if not len(places):
        return None
    place = places[-1 if metric == "precision" else 0]
    below = cosines[place + 1] if place + 1 < len(cosines) else cosines[place] - 1e-3
    return float(cosines[place] + below) / 2, float(hits[place] / totals[place])


def measure(
    pairs: Pairs, metric: Metric, cosine: float, counts: Int64[np.ndarray, "r images"]
) -> Float64[np.ndarray, " r"]:
    """Precision or recall of accepting pairs from a cosine on; NaN where none counts.

    Args:
      pairs: the examples.
      metric: which of both.
      cosine: from which on pairs are accepted.
      counts: number of times that each image counts, for one value or many.
    """
    accepted = pairs.cosines >= cosine
    among = accepted if metric == "precision" else pairs.matches
    images = counts.shape[1]
    hits = counts @ np.bincount(pairs.image[accepted & pairs.matches], minlength=images)
    totals = counts @ np.bincount(pairs.image[among], minlength=images)
    return np.divide(hits, totals, out=np.full(len(hits), np.nan), where=totals > 0)


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
    counts: np.ndarray,
) -> Goal:
    """The goal with its threshold, and the interval of what that does on other images."""
    metric, value = wanted
    choice = choose_cosine(pairs, wanted, np.ones(len(pairs.cosines)))
    if choice is None:
        return Goal(metric, value, None, None, (0.0, 1.0), 0)
    cosine, measured = choice
    once = np.ones((1, counts.shape[1]), np.int64)
    optimism = []
    for count in counts:
        if (resampled := choose_cosine(pairs, wanted, count[pairs.image])) is not None:
            optimism.append(resampled[1] - measure(pairs, metric, resampled[0], once)[0])
    values = measure(pairs, metric, cosine, counts)
    bounds = np.nanpercentile(values, _LEVELS) - np.nanmean(optimism or [0.0])
    low, high = np.clip(bounds, 0.0, 1.0)
    temperature, bias = fitted
    return Goal(
        metric,
        value,
        float(expit(temperature * cosine + bias)),
        measured,
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
