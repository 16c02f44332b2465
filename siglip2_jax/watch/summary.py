"""Summary of a run: verdict, place and pace, in words and as JSON."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from siglip2_jax.watch.curves import draw_curves
from siglip2_jax.watch.history import TIME
from siglip2_jax.watch.rules import Finding, judge, verdict, words
from siglip2_jax.watch.run import WatchedRun

COLUMNS = 200  # of a curve in JSON
LINES = 20  # whose pace is that of the rest


class Summary(NamedTuple):
    """Judgement of a run at some time.

    Attributes:
      verdict: "healthy", "look" or "sick".
      place: how far the run is, in a few words.
      findings: rules that hold, the worst first.
    """

    verdict: str
    place: str
    findings: list[Finding]


def summarize(run: WatchedRun, now: float) -> Summary:
    """Judges a run.

    Args:
      run: as it was read.
      now: seconds since 1970.
    """
    findings = judge(run, now)
    parts = [run.state, f"step {run.step:,}"]
    if last := run.last_step:
        parts[-1] += f" of {last:,} ({run.step / last:.0%})"
    if run.history.step < 0:
        parts = ["starting" if run.state == "running" else run.state, "no numbers yet"]
    elif len(run.stages) > 1:
        parts.append(f"stage {run.stage.name}")
    loss = run.history.get("loss")
    parts += [f"loss {loss.newest:.4g}"] if len(loss) else []
    if run.state == "running" and (left := _seconds_left(run)) is not None:
        parts.append(f"{words(left)} left")
    return Summary(verdict(findings), ", ".join(parts), findings)


def to_json(run: WatchedRun, now: float) -> dict[str, Any]:
    """All that is shown of a run, as JSON has it; numbers that are not finite are null."""
    summary = summarize(run, now)
    return {
        "workdir": run.name,
        "verdict": summary.verdict,
        "state": run.state,
        "end": run.end,
        "step": run.step,
        "last_step": run.last_step,
        "seconds_left": _seconds_left(run),
        "findings": [finding._asdict() for finding in summary.findings],
        "stages": [stage._asdict() for stage in run.stages],
        "starts": [start._asdict() for start in run.starts],
        "alarms": [alarm._asdict() for alarm in run.alarms],
        "repeated_lines": run.history.repeated,
        "unreadable_lines": run.unreadable,
        "newest": {
            name: series.newest if math.isfinite(series.newest) else None
            for name, series in run.history.series.items()
        },
        "curves": {
            curve.name: [column._asdict() for column in curve.columns if column]
            for curve in draw_curves(run, COLUMNS)
        },
    }


def _seconds_left(run: WatchedRun) -> float | None:
    """Time that the rest of the steps takes at the pace of the newest lines of this start."""
    times, last = run.history.get(TIME), run.last_step
    if last is None:
        return None
    begun = run.starts[-1].time
    steps, seconds = times.steps()[-LINES:], times.values()[-LINES:]
    steps, seconds = steps[seconds >= begun], seconds[seconds >= begun]
    if len(steps) < 2 or np.ptp(steps) == 0:
        return None
    return float((last - steps[-1]) * np.ptp(seconds) / np.ptp(steps))
