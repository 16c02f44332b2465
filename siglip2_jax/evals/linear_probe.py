"""Linear probe: multinomial logistic regression on frozen pooled features.

The protocol of CLIP (arXiv 2103.00020, appendix A.3): L-BFGS, at most 1,000 iterations, the
penalty chosen by a sweep on a held-out part and the final fit on all training rows. SigLIP 2
publishes no such number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize
from scipy.special import log_softmax

from siglip2_jax.data.sources import Source
from siglip2_jax.evals.base import Model
from siglip2_jax.evals.pooled import labelled_features, readable, shared_classes

MAX_ITERATIONS = 1000
STD_FLOOR = 1e-5
SWEEP = tuple(10.0**i for i in range(1, -6, -1))


class Logistic(NamedTuple):
    """A linear classifier.

    Attributes:
      weights: of each input for each class.
      bias: of each class.
    """

    weights: Float[np.ndarray, "D K"]
    bias: Float[np.ndarray, " K"]


class ProbeResult(NamedTuple):
    """Result of a linear probe.

    Attributes:
      top1: accuracy on the test rows, 0 to 1.
      l2: the penalty chosen.
      held_out: accuracy on the held-out part for each penalty of the sweep; empty where one
        penalty was given.
    """

    top1: float
    l2: float
    held_out: tuple[float, ...]


def fit_logistic(
    x: Float[np.ndarray, "n D"],
    y: Int[np.ndarray, " n"],
    num_classes: int,
    l2: float,
    start: Logistic | None = None,
) -> Logistic:
    """Minimises `mean cross-entropy + l2 / 2 * |weights|^2` in float64; the bias goes free.

    scikit-learn's `LogisticRegression(C=1 / (n * l2))` has the same minimum.

    Args:
      x: finite features.
      y: class of each row, 0 up to `num_classes - 1`.
      num_classes: K.
      l2: penalty, above 0.
      start: where to begin; None begins with zeros. The minimum does not depend on it.
    """
    x, (n, width) = x.astype(np.float64), x.shape
    onehot = (y[:, None] == np.arange(num_classes)).astype(np.float64)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(width + 1, num_classes)
        log_p = log_softmax(x @ weights[:-1] + weights[-1], axis=1)
        error = (np.exp(log_p) - onehot) / n
        gradient = np.vstack([x.T @ error + l2 * weights[:-1], error.sum(0)])
        value = -np.sum(log_p * onehot) / n + l2 / 2 * np.sum(weights[:-1] ** 2)
        return value, gradient.ravel()

    begin = np.zeros((width + 1, num_classes)) if start is None else np.vstack(start)
    options = {"maxiter": MAX_ITERATIONS, "maxcor": 20, "ftol": 1e-15, "gtol": 1e-8}
    found = minimize(objective, begin.ravel(), jac=True, method="L-BFGS-B", options=options)
    weights = found.x.reshape(width + 1, num_classes)
    return Logistic(weights[:-1], weights[-1])


def linear_probe(
    train_x: Float[np.ndarray, "n D"],
    train_y: Int[np.ndarray, " n"],
    test_x: Float[np.ndarray, "m D"],
    test_y: Int[np.ndarray, " m"],
    *,
    l2: Sequence[float] = SWEEP,
    held_out: float = 0.2,
    seed: int = 0,
) -> ProbeResult:
    """Top-1 accuracy of a logistic regression; the same inputs always give the same answer.

    Features are whitened by the mean and deviation of the training rows. Of equally good penalties
    the largest is taken. Every penalty costs a fit: about 4 n D K operations an iteration.

    Args:
      train_x: pooled features; rows that are not finite are left out.
      train_y: class of each row, from 0.
      test_x: pooled features; rows that are not finite count as wrong.
      test_y: likewise.
      l2: penalties to choose from, relative to the mean cross-entropy.
      held_out: share of each class on which penalties are compared.
      seed: chooses the held-out part.

    Raises:
      ValueError: there is one class only, no test row, or an argument is out of range.
    """
    if not len(l2) or min(l2) <= 0 or not 0 < held_out <= 0.5:
        raise ValueError(
            f"linear probe got l2={list(l2)} and held_out={held_out}; expected penalties above 0 "
            "and a share above 0 and at most 0.5"
        )
    good = readable(train_x)
    x, y = train_x[good].astype(np.float64), train_y[good]
    if len(np.unique(y)) < 2 or not len(test_y):
        raise ValueError(
            f"linear probe got {len(np.unique(y))} classes among {len(y)} readable training rows "
            f"and {len(test_y)} test rows; expected two classes or more and a test row"
        )
    mean, std = x.mean(0), x.std(0) + STD_FLOOR
    x, seen = (x - mean) / std, readable(test_x)
    penalties = sorted(l2, reverse=True)  # each fit starts from the one before
    held = _held_out(y, held_out, seed) if len(l2) > 1 else np.zeros(len(y), bool)
    trials = _sweep(x, y, held, penalties) if held.any() else ()
    chosen = penalties[int(np.argmax(trials))] if trials else penalties[0]
    model = fit_logistic(x, y, int(y.max()) + 1, chosen)
    right = _predict(model, (test_x[seen] - mean) / std) == test_y[seen]
    order = [penalties.index(penalty) for penalty in l2] if trials else []
    return ProbeResult(
        float(right.sum() / len(test_y)), float(chosen), tuple(trials[i] for i in order)
    )


def _held_out(y: Int[np.ndarray, " n"], share: float, seed: int) -> Bool[np.ndarray, " n"]:
    """Every `1 / share`-th row of the rows in order of their class and else at random."""
    order = np.random.default_rng(seed).permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]
    held = np.zeros(len(y), bool)
    step = round(1 / share)
    held[order[step - 1 :: step]] = True
    return held


def _sweep(
    x: Float[np.ndarray, "n D"],
    y: Int[np.ndarray, " n"],
    held: Bool[np.ndarray, " n"],
    penalties: Sequence[float],
) -> tuple[float, ...]:
    found, model = [], None
    for penalty in penalties:
        model = fit_logistic(x[~held], y[~held], int(y.max()) + 1, penalty, start=model)
        found.append(float(np.mean(_predict(model, x[held]) == y[held])))
    return tuple(found)


def _predict(model: Logistic, x: Float[np.ndarray, "m D"]) -> Int[np.ndarray, " m"]:
    return (x @ model.weights + model.bias).argmax(axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """Accuracy of logistic regression on the pooled features before normalisation.

    Attributes:
      train: labelled examples to fit; unreadable ones are left out.
      test: labelled examples to measure on; unreadable ones count as wrong.
      label: field of an example that holds its class, a text or a number.
      l2: penalties to choose from.
      name: prefix of its numbers.
      every: steps between two measurements.
      max_num_patches: token budget at native resolution.
    """

    train: Source
    test: Source
    label: str
    l2: tuple[float, ...] = SWEEP
    name: str = "linear_probe"
    every: int = 10_000
    max_num_patches: int = 256

    def __call__(self, model: Model) -> dict[str, float]:
        """`top1`, from 0 to 1, and `l2`, the penalty chosen."""
        (train_x, train_names), (test_x, test_names) = (
            labelled_features(
                model, source.open(), self.label, max_num_patches=self.max_num_patches
            )
            for source in (self.train, self.test)
        )
        train_y, test_y = shared_classes(train_names, test_names)
        found = linear_probe(train_x, train_y, test_x, test_y, l2=self.l2)
        return {"top1": found.top1, "l2": found.l2}
