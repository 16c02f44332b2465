"""Curves of a run's numbers, thinned to some columns that keep every extreme."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from siglip2_jax.watch.history import TIME, Column
from siglip2_jax.watch.run import WatchedRun

GROUPS = {
    "Losses": re.compile(r"loss(/.*)?|grad_norm"),
    "Rates": re.compile(r"examples_per_s_per_chip|mfu|data_wait"),
    "Scores": re.compile(r"eval/.*"),
    "More": re.compile(r".*"),
}
LOGARITHMIC = 20.0  # of positive values whose largest is more than so many times the least
WORST_IS_HIGH = re.compile(r"loss.*|grad_norm|data_wait")
WORST_IS_LOW = re.compile(r"examples_per_s.*|mfu")


class Curve(NamedTuple):
    """One number over the steps.

    Attributes:
      name: as `metrics.jsonl` has it.
      group: one of `GROUPS`.
      columns: from the first step to the last; None where there is no finite value.
      newest: the last value.
      low: the lower end of the scale.
      high: the upper end.
      log: whether the scale is logarithmic.
    """

    name: str
    group: str
    columns: list[Column | None]
    newest: float
    low: float
    high: float
    log: bool

    def height(self, value: float) -> float:
        """Place of a value on the scale, from 0 to 1."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low) if high > low else 0.5

    def worst(self, column: Column) -> float:
        """Value that stands for a column where only one can be shown."""
        if WORST_IS_HIGH.fullmatch(self.name):
            return column.high
        return column.low if WORST_IS_LOW.fullmatch(self.name) else column.mean


def draw_curves(run: WatchedRun, count: int) -> list[Curve]:
    """Curves of all numbers, by group, each in some columns over the steps done."""
    curves = []
    for name, series in run.history.series.items():
        if name == TIME:
            continue
        group = next(group for group, names in GROUPS.items() if names.fullmatch(name))
        columns = series.columns(0, max(run.step, 1), count)
        drawn = [column for column in columns if column]
        low = min((x.low for x in drawn), default=0.0)
        high = max((x.high for x in drawn), default=0.0)
        if group == "Rates":
            low = min(low, 0.0)  # so that a steady rate is a flat line
        log = low > 0 and high > LOGARITHMIC * low
        curves.append(Curve(name, group, columns, series.newest, low, high, log))
    order = list(GROUPS)
    return sorted(curves, key=lambda curve: order.index(curve.group))
