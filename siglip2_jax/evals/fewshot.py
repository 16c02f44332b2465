"""Few-shot classification: ridge regression on a few examples a class, as big_vision does it.

SigLIP 2's "10-shot" columns (arXiv 2502.14786, tables 1 and 8) come from big_vision's
`evaluators/fewshot_lsr.py`; the arithmetic, the constants and the choice of examples here are its.
It solves in float32, here it is float64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from siglip2_jax.data.sources import Source
from siglip2_jax.evals.base import Model
from siglip2_jax.evals.pooled import labelled_features, readable, shared_classes

BIAS_INPUT = 100.0
"""The constant input for the bias: large, so that the penalty hardly touches it."""
STD_FLOOR = 1e-5
DEFAULT_L2 = 2.0**10


@dataclasses.dataclass(frozen=True)
class Ridge:
    """Least squares with an L2 penalty, solved for every penalty at once.

    The weights are `left @ diag(1 / (eigenvalues + l2)) @ right`.

    Attributes:
      mean: of the training rows, by which inputs are whitened.
      std: likewise; never 0.
      left: eigenvectors, times the inputs transposed where there are fewer rows than inputs.
      eigenvalues: of the smaller of `x.T @ x` and `x @ x.T`.
      right: the targets in the basis of the eigenvectors.
    """

    mean: Float[np.ndarray, " D"]
    std: Float[np.ndarray, " D"]
    left: Float[np.ndarray, "d r"]
    eigenvalues: Float[np.ndarray, " r"]
    right: Float[np.ndarray, "r K"]

    @classmethod
    def fit(cls, x: Float[np.ndarray, "n D"], y: Int[np.ndarray, " n"], num_classes: int) -> Ridge:
        """Regresses +1 for a row's own class and -1 for the others.

        Args:
          x: finite features.
          y: class of each row, 0 up to `num_classes - 1`.
          num_classes: K.
        """
        x = x.astype(np.float64)
        mean, std = x.mean(0), x.std(0) + STD_FLOOR
        inputs = _inputs(x, mean, std)
        targets = np.where(y[:, None] == np.arange(num_classes), 1.0, -1.0)
        if len(inputs) >= inputs.shape[1]:
            eigenvalues, basis = np.linalg.eigh(inputs.T @ inputs)
            return cls(mean, std, basis, eigenvalues, basis.T @ (inputs.T @ targets))
        eigenvalues, basis = np.linalg.eigh(inputs @ inputs.T)
        return cls(mean, std, inputs.T @ basis, eigenvalues, basis.T @ targets)

    def weights(self, l2: float) -> Float[np.ndarray, "d K"]:
        """Minimises `sum |w.T @ x - y|^2 + l2 * |w|^2`; the last row is the bias over 100."""
        return (self.left / (self.eigenvalues + l2)) @ self.right

    def scores(self, x: Float[np.ndarray, "m D"], l2: float) -> Float[np.ndarray, "m K"]:
        """Scores of each class for each row; the highest is the prediction."""
        return _inputs(x.astype(np.float64), self.mean, self.std) @ self.weights(l2)


def _inputs(x: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    return np.pad((x - mean) / std, ((0, 0), (0, 1)), constant_values=BIAS_INPUT)


def fewshot_accuracy(
    train_x: Float[np.ndarray, "n D"],
    train_y: Int[np.ndarray, " n"],
    test_x: Float[np.ndarray, "m D"],
    test_y: Int[np.ndarray, " m"],
    *,
    shots: int = 10,
    l2: Sequence[float] = (DEFAULT_L2,),
    seeds: Sequence[int] = (0, 1, 2),
) -> Float[np.ndarray, "S L"]:
    """Top-1 accuracy after seeing `shots` examples of each class.

    Args:
      train_x: pooled features before normalisation; rows that are not finite (images that could
        not be read) are left out before examples are chosen.
      train_y: class of each row, from 0.
      test_x: pooled features; rows that are not finite count as wrong.
      test_y: likewise; every class must occur in `train_y`.
      shots: examples of each class.
      l2: penalties. The published ones are unknown; big_vision's default is 2^10.
      seeds: each chooses other examples, the same as big_vision from rows in the same order.

    Returns:
      Accuracy from 0 to 1 for each seed and penalty.

    Raises:
      ValueError: a class has too few examples, there is one class only, or an argument is out of
        range.
    """
    if shots < 1 or not len(seeds) or not len(l2) or min(l2) <= 0:
        raise ValueError(
            f"few-shot got shots={shots}, l2={list(l2)}, seeds={list(seeds)}; expected at least "
            "1 shot, one seed and one penalty, and penalties above 0"
        )
    good = readable(train_x)
    x, y = train_x[good], train_y[good]
    counts = _checked_counts(y, test_y, shots)
    seen = readable(test_x)
    found = np.zeros((len(seeds), len(l2)))
    for i, seed in enumerate(seeds):
        rng = np.random.default_rng(seed)
        chosen = np.concatenate(
            [rng.permutation(np.flatnonzero(y == k))[:shots] for k in range(len(counts))]
        )
        ridge = Ridge.fit(x[chosen], y[chosen], len(counts))
        for j, penalty in enumerate(l2):
            right = ridge.scores(test_x[seen], penalty).argmax(1) == test_y[seen]
            found[i, j] = right.sum() / len(test_y)
    return found


def _checked_counts(
    train_y: Int[np.ndarray, " n"], test_y: Int[np.ndarray, " m"], shots: int
) -> Int[np.ndarray, " K"]:
    """Counts the readable training examples of each class; numbers that no row uses have none."""
    if not len(test_y):
        raise ValueError("few-shot got no test rows; pass at least one")
    both = np.concatenate([train_y, test_y])
    if both.min() < 0:
        raise ValueError(f"few-shot got the class {both.min()}; expected numbers from 0")
    counts = np.bincount(train_y, minlength=both.max() + 1)
    used = np.unique(both)
    if len(used) < 2:
        raise ValueError(f"few-shot got the class {used[0]} only; expected two classes or more")
    worst = used[counts[used].argmin()]
    if counts[worst] < shots:
        raise ValueError(
            f"few-shot: class {worst} has {counts[worst]} readable training examples, and "
            f"{shots} shots were asked for; add examples, or lower shots"
        )
    return counts


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShot:
    """Few-shot accuracy of the pooled features before normalisation.

    Attributes:
      train: labelled examples to choose from; unreadable ones are left out.
      test: labelled examples to measure on; unreadable ones count as wrong.
      label: field of an example that holds its class, a text or a number.
      shots: examples of each class.
      l2: penalties.
      seeds: each chooses other examples.
      name: prefix of its numbers.
      every: steps between two measurements.
      max_num_patches: token budget at native resolution.
    """

    train: Source
    test: Source
    label: str
    shots: int = 10
    l2: tuple[float, ...] = (DEFAULT_L2,)
    seeds: tuple[int, ...] = (0, 1, 2)
    name: str = "fewshot"
    every: int = 10_000
    max_num_patches: int = 256

    def __call__(self, model: Model) -> dict[str, float]:
        """`<shots>shot`, from 0 to 1, mean over the seeds; with several penalties each its own.

        With several penalties the keys are `<shots>shot_l2_<l2>`.

        Raises:
          ValueError: an example has no label, or a class too few examples.
        """
        (train_x, train_names), (test_x, test_names) = (
            labelled_features(model, source, self.label, max_num_patches=self.max_num_patches)
            for source in (self.train, self.test)
        )
        train_y, test_y = shared_classes(train_names, test_names)
        found = fewshot_accuracy(
            train_x, train_y, test_x, test_y, shots=self.shots, l2=self.l2, seeds=self.seeds
        ).mean(axis=0)
        key = f"{self.shots}shot"
        if len(self.l2) == 1:
            return {key: float(found[0])}
        return {f"{key}_l2_{x:g}": float(v) for x, v in zip(self.l2, found, strict=True)}
