"""Linear probe: multinomial logistic regression on frozen pooled features.

The protocol of CLIP (arXiv 2103.00020, appendix A.3): L-BFGS, at most 1,000 iterations, the
penalty chosen by a sweep on a held-out part and the final fit on all training rows. SigLIP 2
publishes no such number, so two choices are made here: features are whitened, by the mean and
deviation of the training rows, so that one sweep suits all models; and the sweep has 7 penalties,
the powers of ten from 10 to 1e-5, where CLIP searches 96 logarithmic steps from 1e-6 to 1e6 by
halving.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from siglip2_jax.data.sources import Source
from siglip2_jax.evals.base import Model
from siglip2_jax.evals.logistic import Logistic, Rows
from siglip2_jax.evals.pooled import labelled_features, readable, shared_classes

STD_FLOOR = 1e-5
SWEEP = tuple(10.0**i for i in range(1, -6, -1))


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

    It runs in float32 on the devices of this process, in parts, so that memory beside the features
    is bounded (see `logistic`). Of equally good penalties the largest is taken. Every penalty costs
    a fit: about 6 n D K operations an iteration.

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
    x, y = _readable(train_x, train_y)
    readable_x, readable_y = _readable(test_x, test_y)
    if len(np.unique(y)) < 2 or not len(test_y):
        raise ValueError(
            f"linear probe got {len(np.unique(y))} classes among {len(y)} readable training rows "
            f"and {len(test_y)} test rows; expected two classes or more and a test row"
        )
    classes, (mean, std) = int(y.max()) + 1, _moments(x)
    rows = Rows.place(x, y, classes, mean=mean, std=std)
    penalties = sorted(l2, reverse=True)  # each fit starts from the one before
    mask = _held_out(y, held_out, seed) if len(l2) > 1 else np.zeros(len(y), bool)
    trials = _sweep(rows, classes, y, mask, penalties) if mask.any() else ()
    best = penalties[int(np.argmax(trials))] if trials else penalties[0]
    model, hits = rows.fit(classes, best), 0
    if len(readable_y):
        hits = np.sum(
            Rows.place(readable_x, readable_y, classes, mean=mean, std=std).predict(model)
            == readable_y
        )
    order = [penalties.index(penalty) for penalty in l2] if trials else []
    return ProbeResult(float(hits / len(test_y)), float(best), tuple(trials[i] for i in order))


def _readable(
    x: Float[np.ndarray, "n D"], y: Int[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, "k D"], Int[np.ndarray, " k"]]:
    """The rows that are finite; without a copy where all are."""
    mask = readable(x)
    return (x, y) if mask.all() else (x[mask], y[mask])


def _moments(
    x: Float[np.ndarray, "n D"],
) -> tuple[Float[np.ndarray, " D"], Float[np.ndarray, " D"]]:
    """Mean and deviation in float64, without a copy in float64."""
    mean = x.mean(axis=0, dtype=np.float64)
    blocks = np.array_split(x, max(1, len(x) // 2**14))
    variance = sum(np.sum((block - mean) ** 2, axis=0) for block in blocks) / len(x)
    return mean, np.sqrt(variance) + STD_FLOOR


def _held_out(y: Int[np.ndarray, " n"], share: float, seed: int) -> Bool[np.ndarray, " n"]:
    """Every `1 / share`-th row of the rows in order of their class and else at random."""
    order = np.random.default_rng(seed).permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]
    mask = np.zeros(len(y), bool)
    step = round(1 / share)
    mask[order[step - 1 :: step]] = True
    return mask


def _sweep(
    rows: Rows,
    classes: int,
    y: Int[np.ndarray, " n"],
    mask: Bool[np.ndarray, " n"],
    penalties: Sequence[float],
) -> tuple[float, ...]:
    """Accuracy on the held-out part for each penalty."""
    accuracies: list[float] = []
    model: Logistic | None = None
    for penalty in penalties:
        model = rows.fit(classes, penalty, used=1.0 - mask, start=model)
        accuracies.append(float(np.mean(rows.predict(model)[mask] == y[mask])))
    return tuple(accuracies)


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
        result = linear_probe(train_x, train_y, test_x, test_y, l2=self.l2)
        return {"top1": result.top1, "l2": result.l2}
