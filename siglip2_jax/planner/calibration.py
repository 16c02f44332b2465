"""Calibration of estimated times: programs whose step time on TPUs is published, and its estimate.

`scripts/calibrate_plan.py` compiles the programs and writes `calibration.json`. Estimates are not
changed by it: the ratio is printed beside them.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_suffix(".json")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One program, measured by others and estimated here.

    Attributes:
      name: of the program.
      source: where its time is published.
      published: seconds of a step.
      estimated: seconds by this package.
    """

    name: str
    source: str
    published: float
    estimated: float

    @property
    def ratio(self) -> float:
        """Published time / estimate."""
        return self.published / self.estimated


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Evidence on estimated times.

    Attributes:
      kind: what the programs are, in words.
      command: that makes the estimates.
      versions: of what compiled them.
      programs: one or more.
    """

    kind: str
    command: str
    versions: dict[str, str]
    programs: tuple[Comparison, ...]

    @property
    def ratio(self) -> float:
        """The mean of the programs' ratios."""
        return statistics.fmean(program.ratio for program in self.programs)

    @property
    def spread(self) -> tuple[float, float]:
        """The least and the largest ratio."""
        ratios = [program.ratio for program in self.programs]
        return min(ratios), max(ratios)

    @property
    def note(self) -> str:
        """The line beside a table of times."""
        names = ", ".join(program.name for program in self.programs)
        least, largest = (f"{ratio:.2f}" for ratio in self.spread)
        spread = "" if least == largest else f" ({least}-{largest})"
        return f"(published / estimate: {self.ratio:.2f}{spread} in {self.kind}: {names})"

    def to_json(self) -> dict[str, Any]:
        """The fields and what follows from them, for machines."""
        programs = [dataclasses.asdict(x) | {"ratio": x.ratio} for x in self.programs]
        fields = dataclasses.asdict(self) | {"programs": programs}
        return fields | {"ratio": self.ratio, "spread": self.spread}


def _read() -> Calibration:
    fields = json.loads(FILE.read_text())
    programs = tuple(Comparison(**program) for program in fields.pop("programs"))
    return Calibration(**fields, programs=programs)


CALIBRATION = _read()
"""The ratio of published times to estimates, its spread, and where they are from."""
