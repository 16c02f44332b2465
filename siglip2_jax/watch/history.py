"""Numbers of a run, by name and step, as its `metrics.jsonl` tells them."""

from __future__ import annotations

import bisect
import json
from array import array
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from jaxtyping import Float64, Int64

TIME = "time"
LARGEST, LARGEST_TIME = 2**53, 1e11


class Column(NamedTuple):
    """Range of values within some steps of a curve.

    Attributes:
      step: the last one.
      low: the least value.
      mean: of the values.
      high: the largest.
    """

    step: int
    low: float
    mean: float
    high: float


class Series:
    """One number over the steps, which grow."""

    def __init__(self) -> None:
        self._steps, self._values = array("q"), array("d")

    def add(self, step: int, value: float) -> None:
        """Appends a value."""
        self._steps.append(step)
        self._values.append(value)

    def cut(self, step: int) -> int:
        """Forgets this step and all later ones; returns how many values these had."""
        place, count = bisect.bisect_left(self._steps, step), len(self._steps)
        del self._steps[place:], self._values[place:]
        return count - place

    def steps(self) -> Int64[np.ndarray, " n"]:
        """The steps."""
        return np.array(self._steps, np.int64)

    def values(self, first: int = 0) -> Float64[np.ndarray, " n"]:
        """The values, from the first step after `first` on."""
        place = bisect.bisect_right(self._steps, first) if first else 0
        return np.array(self._values[place:], np.float64)

    @property
    def newest(self) -> float:
        """The last value."""
        return self._values[-1]

    @property
    def newest_step(self) -> int:
        """The step of the last value."""
        return self._steps[-1]

    def __len__(self) -> int:
        return len(self._steps)

    def columns(self, first: int, last: int, count: int) -> list[Column | None]:
        """The curve between two steps in some columns; None where one has no finite value."""
        steps, values = self.steps(), self.values()
        edges = np.linspace(first, last, count + 1)[1:-1]
        places = [0, *np.searchsorted(steps, edges, side="right"), len(steps)]
        parts = (slice(a, b) for a, b in zip(places[:-1], places[1:], strict=True))
        return [_column(steps[part], values[part]) for part in parts]


def _column(steps: np.ndarray, values: np.ndarray) -> Column | None:
    finite = np.isfinite(values)
    if not finite.any():
        return None
    steps, values = steps[finite], values[finite]
    return Column(int(steps[-1]), float(values.min()), float(values.mean()), float(values.max()))


class History:
    """All numbers of a run.

    Attributes:
      series: by name.
      step: the newest.
      unreadable: lines that are not JSON with a step.
      repeated: lines that a later line of the same or an earlier step has replaced.
    """

    def __init__(self) -> None:
        """Starts empty."""
        self.series: dict[str, Series] = {}
        self.step = -1
        self.unreadable = self.repeated = 0

    def add(self, line: bytes) -> None:
        """Takes a line; where it goes back to an earlier step, it replaces what was after it."""
        row = parse(line) or {}
        step = row.pop("step", None)
        if not is_step(step) or not is_time(row.get(TIME, 0)):
            self.unreadable += 1
            return
        if step <= self.step:
            self.repeated += max((x.cut(step) for x in self.series.values()), default=0)
            self.series = {name: series for name, series in self.series.items() if len(series)}
        self.step = step
        for name, value in row.items():
            if isinstance(value, float) or (isinstance(value, int) and abs(value) < LARGEST):
                if name not in self.series:
                    if not name.isprintable():
                        continue
                    self.series[name] = Series()
                self.series[name].add(step, float(value))

    def get(self, name: str) -> Series:
        """A series, empty where there is none."""
        return self.series.get(name, Series())


def is_step(value: Any) -> TypeGuard[int]:
    """True for a whole number of steps."""
    return type(value) is int and 0 <= value < LARGEST


def is_time(value: Any) -> TypeGuard[float]:
    """True for seconds since 1970."""
    return type(value) in (int, float) and 0 <= value < LARGEST_TIME


def parse(line: bytes) -> dict[str, Any] | None:
    """The object of a line; None where it holds none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
