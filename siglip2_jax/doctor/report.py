"""Findings as text: a table, and what to do about what fails."""

from __future__ import annotations

from collections.abc import Sequence

from siglip2_jax.doctor.check import Finding

_WIDEST = 60  # characters of a cell


def report(findings: Sequence[Finding]) -> str:
    """A row for each finding, then all that fails in full, then a count."""
    rows = [("", "check", "measured", "expected", "where")]
    rows += [(x.status, x.check, x.measured, x.expected, x.place) for x in findings]
    cells = [[_short(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
    failing = [finding for finding in findings if finding.status == "FAIL"]
    return "\n".join(
        [*lines, *(["", *map(_explain, failing)] if failing else []), "", _count(findings)]
    )


def _explain(finding: Finding) -> str:
    where = f" ({finding.place})" if finding.place else ""
    expected = f", expected {finding.expected}" if finding.expected else ""
    way_out = f"\n  {finding.way_out}" if finding.way_out else ""
    return f"{finding.check}{where}: {finding.measured}{expected}{way_out}"


def _count(findings: Sequence[Finding]) -> str:
    counts = {
        status: sum(x.status == status for x in findings) for status in ("PASS", "FAIL", "SKIP")
    }
    return f"{counts['PASS']} pass, {counts['FAIL']} fail, {counts['SKIP']} skipped"


def _short(text: str) -> str:
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 2]} …"
