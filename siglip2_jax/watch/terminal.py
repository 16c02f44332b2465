"""A run as lines of a terminal: verdict, findings, a curve a row, stages and restarts."""

from __future__ import annotations

from rich.text import Text

from siglip2_jax.watch.curves import Curve, draw_curves
from siglip2_jax.watch.run import WatchedRun
from siglip2_jax.watch.summary import summarize

RAMP, PLAIN_RAMP = "▁▂▃▄▅▆▇█", "_.-:=+*#"
STYLES = {"healthy": "bold green", "look": "bold yellow", "sick": "bold red"}
NAME, NUMBERS = 26, 32  # columns beside a curve


def draw(run: WatchedRun, now: float, width: int, plain: bool = False) -> Text:
    """Draws a run.

    Args:
      run: as it was read.
      now: seconds since 1970.
      width: columns of the terminal.
      plain: with characters of ASCII alone.
    """
    summary = summarize(run, now)
    lines = [
        Text.assemble(
            (summary.verdict.upper(), STYLES[summary.verdict]), f"  {run.name}: {summary.place}"
        )
    ]
    for finding in summary.findings:
        style = STYLES["sick" if finding.sick else "look"]
        lines.append(Text.assemble((f"  {finding.rule}", style), f": {finding.text}"))
    count = max(width - NAME - NUMBERS, 10)
    group = ""
    for curve in draw_curves(run, count):
        if curve.group == "More":
            break
        if curve.group != group:
            group = curve.group
            lines.append(Text(f"\n{group}", style="bold"))
        lines.append(Text(_row(curve, PLAIN_RAMP if plain else RAMP)))
    lines.append(Text())
    if run.stages:
        lines.append(Text(_label("stages") + _ruler(run, count)))
    if len(run.starts) > 1:
        marks = _marks([start.step for start in run.starts[1:]], run.step, count)
        lines.append(Text(f"{_label('restarts')}{marks}  {len(run.starts) - 1:,}"))
    if run.alarms:
        marks = _marks([alarm.step for alarm in run.alarms], run.step, count)
        lines.append(Text(f"{_label('alarms')}{marks}  {len(run.alarms):,}"))
    return Text("\n").join(lines)


def _row(curve: Curve, ramp: str) -> str:
    def level(value: float) -> str:
        return ramp[min(int(curve.height(value) * len(ramp)), len(ramp) - 1)]

    bars, drawn = "", [x for x in curve.columns if x]
    dense = len(drawn) > len(curve.columns) / 2  # gaps are then between lines
    for column in curve.columns:
        gap = bars[-1:] if dense else ""
        bars += level(curve.worst(column)) if column else gap or " "
    scale = " log" if curve.log else ""
    numbers = f"{curve.newest:.4g}  ({curve.low:.3g} to {curve.high:.3g}{scale})"
    return f"{_label(curve.name.removeprefix('eval/'))}{bars}  {numbers}".rstrip()


def _label(name: str) -> str:
    """A name in its column; a long one loses its beginning."""
    return f"{name[-(NAME - 2) :]:{NAME}}"


def _ruler(run: WatchedRun, count: int) -> str:
    """The stages so far, each from a bar on; a name that has no room is cut."""
    ruler = [" "] * count
    for stage in run.stages:
        if stage.first <= run.step:
            place = _place(stage.first, run.step, count)
            text = f"|{stage.name}"[: count - place]
            ruler[place:] = list(text.ljust(count - place))
    return "".join(ruler)


def _marks(steps: list[int], last: int, count: int) -> str:
    marks = [" "] * count
    for step in steps:
        marks[_place(step, last, count)] = "^"
    return "".join(marks)


def _place(step: int, last: int, count: int) -> int:
    return min(step * count // max(last, 1), count - 1)
