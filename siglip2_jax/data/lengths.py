"""Sequence lengths of native-resolution training, and the plan of what each step reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64, UInt8

Aspect = Literal["keep", "square"]


@dataclass(frozen=True)
class Lengths:
    """Patch budgets of training: one for the whole mini-batch, drawn at random each step.

    The defaults are those of SigLIP 2 (arXiv 2502.14786, section 2.4.2): five lengths, the same
    number of examples of each, half the batch at the longest and so twice the steps.

    Attributes:
      budgets: patches an image may have.
      shares: shares of the examples that are seen at each budget, up to normalisation; None for
        equal ones.
      batch_scale: budgets whose batches are smaller or larger, each with its factor. Budgets that
        are not trained at may be named.
      aspect: "keep" keeps the images' aspect ratio, "square" squashes them to the largest square
        grid within the budget.
    """

    budgets: tuple[int, ...] = (128, 256, 576, 784, 1024)
    shares: tuple[float, ...] | None = None
    batch_scale: tuple[tuple[int, float], ...] = ((1024, 0.5),)
    aspect: Aspect = "keep"

    def __post_init__(self) -> None:
        budgets, shares = self.budgets, self.shares
        if not 1 <= len(budgets) <= 256 or min(budgets) < 1 or len(set(budgets)) < len(budgets):
            raise ValueError(
                f"budgets must be different numbers from 1 up, at most 256, got {budgets}"
            )
        if shares is not None and (
            len(shares) != len(budgets) or min(shares) < 0 or not 0 < sum(shares) < np.inf
        ):
            raise ValueError(
                f"shares must be one number from 0 up for each of {len(budgets)} budgets, and not "
                f"all 0, got {shares}"
            )
        if any(not 0 < scale < np.inf for _, scale in self.batch_scale):
            raise ValueError(f"batch_scale must hold factors above 0, got {self.batch_scale}")
        if self.aspect not in ("keep", "square"):
            raise ValueError(f'aspect must be "keep" or "square", got {self.aspect!r}')

    def scale(self, budget: int) -> float:
        """The factor of the batch size at a budget."""
        return dict(self.batch_scale).get(budget, 1.0)

    @property
    def probabilities(self) -> Float64[np.ndarray, " L"]:
        """Probability of each budget at a step: smaller batches need more steps."""
        shares = self.shares or (1.0,) * len(self.budgets)
        scales = [self.scale(budget) for budget in self.budgets]
        weights = np.divide(shares, scales)
        return weights / weights.sum()

    def sample(self, seed: int, steps: int) -> Int64[np.ndarray, " S"]:
        """The budget of each step from 0 on.

        Step s has the same budget on every host and whatever `steps` is.
        """
        return np.array(self.budgets, np.int64)[self._choices(seed, steps)]

    def batch_size(self, budget: int, full: int) -> int:
        """The global batch size at a budget, where the unscaled one is `full`.

        Raises:
          ValueError: the scaled size is no whole number.
        """
        size = full * self.scale(budget)
        if size != round(size) or size < 1:
            raise ValueError(
                f"a batch of {full} scaled by {self.scale(budget)} for budget {budget} is "
                f"{size:g} examples; choose a batch size that scales to a whole number"
            )
        return round(size)

    def reading(
        self, seed: int, steps: int, batch: int, *, step: int = 0, position: int = 0
    ) -> StepSchedule:
        """Token budgets and batch sizes of the steps that are left of a run.

        Args:
          seed: of the sampled budgets.
          steps: steps of the whole run.
          batch: unscaled global batch size.
          step: the step to start at.
          position: the global index of that step's first example.

        Raises:
          ValueError: a scaled batch size is no whole number.
        """
        sizes = tuple((budget, self.batch_size(budget, batch)) for budget in self.budgets)
        choices = self._choices(seed, steps)[step:] if len(sizes) > 1 else None
        return StepSchedule(sizes, max(0, steps - step), choices, step, position)

    def _choices(self, seed: int, steps: int) -> UInt8[np.ndarray, " S"]:
        """Number of the budget of each step."""
        draws = np.random.Generator(np.random.PCG64((seed, 0x1E))).random(steps)
        edges = np.cumsum(self.probabilities)[:-1]
        return np.searchsorted(edges, draws, side="right").astype(np.uint8)


# Steps between those whose positions are kept.
_STRIDE = 1024


@dataclass(frozen=True, eq=False)
class StepSchedule:
    """Token budgets and batch sizes of consecutive steps, in a byte a step or less.

    Examples of a run are numbered by one global index; a step reads the next `batch_size` of them.
    So a run continues exactly from two integers, the step and the position, whatever the number of
    hosts, and even if batch sizes change.

    Attributes:
      sizes: every budget that a step may have (patches of an image), and its batch size: examples
        of a step on all hosts together.
      steps: number of steps.
      choices: which of `sizes` each step has; None for the first one throughout.
      step: number of the first step.
      position: global index of its first example.
    """

    sizes: tuple[tuple[int, int], ...]
    steps: int
    choices: UInt8[np.ndarray, " S"] | None = None
    step: int = 0
    position: int = 0

    def __post_init__(self) -> None:
        if min(min(pair) for pair in self.sizes) < 1:
            raise ValueError("budgets and batch sizes of a reading must be at least 1")
        if min(self.step, self.position) < 0:
            raise ValueError(
                f"step and position must be at least 0, got {self.step} and {self.position}"
            )

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Batch sizes that a step may have, in the order of `sizes`."""
        return tuple(size for _, size in self.sizes)

    @property
    def budgets(self) -> tuple[int, ...]:
        """Budgets that a step of these has, in ascending order."""
        if self.choices is None:
            return (self.sizes[0][0],) if self.steps else ()
        return tuple(sorted(self.sizes[i][0] for i in np.unique(self.choices)))

    @cached_property
    def _marks(self) -> Int64[np.ndarray, " M"]:
        """The position of every step whose number here is a multiple of the stride."""
        sizes = np.array(self.batch_sizes, np.int64)[self.choices]
        return self.position + np.concatenate([[0], np.cumsum(sizes)])[::_STRIDE].astype(np.int64)

    def _position(self, i: int) -> int:
        """The global index of the first example of step `self.step + i`."""
        if self.choices is None:
            return self.position + i * self.batch_sizes[0]
        mark = i // _STRIDE
        since = np.bincount(self.choices[mark * _STRIDE : i], minlength=len(self.sizes))
        return int(self._marks[mark]) + int(since @ np.array(self.batch_sizes))

    @property
    def end(self) -> int:
        """The global index of the example after the last."""
        return self._position(self.steps)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, i: int) -> tuple[int, int, int, int]:
        """Step, budget, batch size and position of step `self.step + i`."""
        if not 0 <= i < self.steps:
            raise IndexError(f"there are {self.steps} steps, no number {i} from 0 on")
        budget, size = self.sizes[0 if self.choices is None else int(self.choices[i])]
        return self.step + i, budget, size, self._position(i)

    def __iter__(self) -> Iterator[tuple[int, int, int, int]]:
        """Step, budget, batch size and position of each step."""
        return map(self.__getitem__, range(self.steps))
