"""Means and spreads over seeds, and differences between arms that share their seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

CONFIDENCE = 0.95


class Spread(NamedTuple):
    """Mean of some values.

    Attributes:
      mean: of the values.
      sd: their standard deviation, of a sample; None of a single one.
    """

    mean: float
    sd: float | None


class Difference(NamedTuple):
    """Mean of paired differences, with the interval that holds the true one at 95 % confidence.

    Attributes:
      mean: of the differences.
      low: lower end of the interval, by Student's t; None of a single pair.
      high: upper end.
    """

    mean: float
    low: float | None
    high: float | None


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation of at least one value."""
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(float(np.mean(values)), sd)


def paired(values: Mapping[int, float], base: Mapping[int, float]) -> Difference | None:
    """Difference from a base, over the seeds that both have; None where there is none.

    Args:
      values: by seed.
      base: by seed.
    """
    differences = [values[seed] - base[seed] for seed in values if seed in base]
    if not differences:
        return None
    mean, sd = spread(differences)
    if sd is None:
        return Difference(mean, None, None)
    count = len(differences)
    margin = float(special.stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * sd / math.sqrt(count)
    return Difference(mean, mean - margin, mean + margin)
