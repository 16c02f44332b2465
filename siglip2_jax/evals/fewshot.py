"""Few-shot classification: ridge regression on a few examples a class, as big_vision does it.

SigLIP 2's "10-shot" columns (arXiv 2502.14786, tables 1 and 8) come from big_vision's
`evaluators/fewshot_lsr.py`; the arithmetic, the constants and the choice of examples here are its.
It solves in float32, here it is float64. It embeds all training images and then chooses; here the
choice is made from the labels, and only chosen images are read, if the source can tell labels
without images, and embedded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from siglip2_jax.data.sources import Source
from siglip2_jax.evals.base import Model
from siglip2_jax.evals.crops import check_share
from siglip2_jax.evals.pooled import (
    chosen_features,
    labelled_features,
    read_labels,
    readable,
    shared_classes,
)

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
      train_x: pooled features before normalisation; where a chosen row is not finite (an image
        that could not be read), the next of its class in the random order takes its place.
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
    _check_numbers(shots, l2, seeds)
    is_readable = readable(train_x)
    choices = choose_examples(train_y, is_readable, test_y, shots, seeds)
    accuracies = [_accuracies(train_x[rows], train_y[rows], test_x, test_y, l2) for rows in choices]
    return np.array(accuracies)


def choose_examples(
    train_y: Int[np.ndarray, " n"],
    good: Bool[np.ndarray, " n"],
    test_y: Int[np.ndarray, " m"],
    shots: int,
    seeds: Sequence[int],
) -> Int[np.ndarray, "S r"]:
    """Rows to learn from, for each seed: those of big_vision where all are good.

    Args:
      train_y: class of each training example, from 0.
      good: false for examples that are left out.
      test_y: classes that must be learned.
      shots: examples of each class.
      seeds: of the random orders.

    Raises:
      ValueError: a class has too few good examples, or there is one class only.
    """
    counts = _checked_counts(train_y[good], test_y, shots)
    ends = np.cumsum(np.bincount(train_y, minlength=len(counts)))
    classes = np.split(np.argsort(train_y, kind="stable"), ends[:-1])
    choices = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        orders = [rng.permutation(rows) for rows in classes]
        choices.append(np.concatenate([order[good[order]][:shots] for order in orders]))
    return np.stack(choices)


def _accuracies(
    x: Float[np.ndarray, "r D"],
    y: Int[np.ndarray, " r"],
    test_x: Float[np.ndarray, "m D"],
    test_y: Int[np.ndarray, " m"],
    l2: Sequence[float],
) -> list[float]:
    """Accuracy for each penalty, of one choice of training rows."""
    ridge, is_readable = Ridge.fit(x, y, int(y.max()) + 1), readable(test_x)
    hits = (
        ridge.scores(test_x[is_readable], penalty).argmax(1) == test_y[is_readable]
        for penalty in l2
    )
    return [float(x.sum() / len(test_y)) for x in hits]


def _check_numbers(shots: int, l2: Sequence[float], seeds: Sequence[int]) -> None:
    if shots < 1 or not len(seeds) or not len(l2) or min(l2) <= 0:
        raise ValueError(
            f"few-shot got shots={shots}, l2={list(l2)}, seeds={list(seeds)}; expected at least "
            "1 shot, one seed and one penalty, and penalties above 0"
        )


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
    classes = np.unique(both)
    if len(classes) < 2:
        raise ValueError(f"few-shot got the class {classes[0]} only; expected two classes or more")
    worst = classes[counts[classes].argmin()]
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
      train: labelled examples to choose from. An unreadable one that is chosen is replaced by
        another of its class.
      test: labelled examples to measure on; unreadable ones count as wrong.
      label: field of an example that holds its class, a text or a number.
      shots: examples of each class.
      l2: penalties.
      seeds: each chooses other examples.
      among: how many of the training examples, from the first, to choose from; None is all. For
        ImageNet big_vision's configuration reads 65,000, as TFDS shuffles them.
      crop: share of each side of an image that is kept, about the centre; `crops.CENTRE` is that
        of big_vision's configuration.
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
    among: int | None = None
    crop: float = 1.0
    name: str = "fewshot"
    every: int = 10_000
    max_num_patches: int = 256

    def __post_init__(self) -> None:
        _check_numbers(self.shots, self.l2, self.seeds)
        check_share("FewShot", self.crop)

    def __call__(self, model: Model) -> dict[str, float]:
        """`<shots>shot`, from 0 to 1, mean over the seeds; with several penalties each its own.

        With several penalties the keys are `<shots>shot_l2_<l2>`.

        Raises:
          ValueError: an example has no label, or a class too few examples.
        """
        images = {"max_num_patches": self.max_num_patches, "crop": self.crop}
        train = self.train.open()
        count = len(train) if self.among is None else self.among
        names = read_labels(train, self.label, count)
        test_x, test_names = labelled_features(model, self.test.open(), self.label, **images)
        train_y, test_y = shared_classes(names, test_names)
        is_readable, features = np.ones(len(train_y), bool), {}
        while True:
            choices = choose_examples(train_y, is_readable, test_y, self.shots, self.seeds)
            new = sorted({*choices.ravel().tolist()} - features.keys())
            if not new:
                break
            x = chosen_features(model, train, new, **images)
            is_readable[new] = readable(x)
            features |= zip(new, x, strict=True)
        accuracies = [
            _accuracies(np.stack([features[i] for i in rows]), y, test_x, test_y, self.l2)
            for rows, y in zip(choices, train_y[choices], strict=True)
        ]
        mean = np.mean(accuracies, axis=0)
        key = f"{self.shots}shot"
        if len(self.l2) == 1:
            return {key: float(mean[0])}
        return {f"{key}_l2_{x:g}": float(v) for x, v in zip(self.l2, mean, strict=True)}
