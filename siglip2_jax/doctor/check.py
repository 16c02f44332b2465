"""Checks of a machine, and what they find: a value beside what it should be, and a way out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

Status = Literal["PASS", "FAIL", "SKIP"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """Result of a check.

    Attributes:
      check: its name.
      status: FAIL where something is wrong, SKIP where it could not be looked at.
      measured: the value, or what is wrong, or why it was skipped.
      expected: the value that it should have, or the tolerance.
      way_out: what to do about a FAIL, such as a setting that avoids what is wrong.
      value: what was measured, where that is one number.
      limit: what it was compared with.
      place: the process and its host, where processes differ.
    """

    check: str
    status: Status
    measured: str
    expected: str = ""
    way_out: str = ""
    value: float | None = None
    limit: float | None = None
    place: str = ""

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Finding:
        """The inverse."""
        return cls(**fields)


Findings = Iterable[Finding]


@dataclasses.dataclass(frozen=True)
class Check:
    """Work that gives findings.

    Attributes:
      name: of the check, for what is said where the work itself fails.
      run: the work; an error is a FAIL with its message.
      late: the status where the work does not end in time: FAIL if it should take no time, SKIP
        if it may, such as a compilation.
      way_out: what to do where the work fails.
      share: of the time for all checks, in which this one may begin; what comes later needs the
        rest.
    """

    name: str
    run: Callable[[], Findings]
    late: Status = "FAIL"
    way_out: str = ""
    share: float = 1.0


def passed(check: str, measured: str, expected: str = "") -> Finding:
    """A PASS."""
    return Finding(check=check, status="PASS", measured=measured, expected=expected)


def failed(check: str, measured: str, expected: str = "", way_out: str = "") -> Finding:
    """A FAIL."""
    return Finding(
        check=check, status="FAIL", measured=measured, expected=expected, way_out=way_out
    )


def skipped(check: str, why: str) -> Finding:
    """A SKIP."""
    return Finding(check=check, status="SKIP", measured=why)


def at_most(
    check: str, value: float, limit: float, show: str = "{:.2g}", way_out: str = ""
) -> Finding:
    """PASS where a value is no larger than a limit; a value that is no number is a FAIL.

    Args:
      check: name.
      value: what was measured.
      limit: the largest that it may be.
      show: format of both.
      way_out: what to do otherwise.
    """
    return _compared(
        check, value, limit, value <= limit, f"at most {show.format(limit)}", show, way_out
    )


def at_least(
    check: str, value: float, limit: float, show: str = "{:.2g}", way_out: str = ""
) -> Finding:
    """PASS where a value is no smaller than a limit; arguments as for `at_most`."""
    return _compared(
        check, value, limit, value >= limit, f"at least {show.format(limit)}", show, way_out
    )


def _compared(
    check: str, value: float, limit: float, good: bool, expected: str, show: str, way_out: str
) -> Finding:
    return Finding(
        check=check,
        status="PASS" if good else "FAIL",
        measured=show.format(value),
        expected=expected,
        way_out="" if good else way_out,
        value=float(value),
        limit=float(limit),
    )
