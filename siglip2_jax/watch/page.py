"""A run as one self-contained HTML page: verdict, rules, curves, stages, restarts and alarms."""

from __future__ import annotations

import html
import time
from collections.abc import Iterable, Sequence
from itertools import groupby
from string import Template

from siglip2_jax.watch.curves import Curve, draw_curves
from siglip2_jax.watch.events import Stage
from siglip2_jax.watch.history import TIME
from siglip2_jax.watch.rules import RULES, words
from siglip2_jax.watch.run import WatchedRun
from siglip2_jax.watch.summary import summarize

WIDTH, HEIGHT, TOP = 440, 120, 12  # of a chart; the names of stages stand in its top
COLUMNS = 220

_PAGE = Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>$name: $verdict</title>
<style>
 body { font: 14px/1.4 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff; }
 .verdict { padding: .6rem 1rem; border-left: .5rem solid; max-width: 60rem; }
 .verdict ul { margin: .3rem 0 0; padding-left: 1.2rem; }
 .healthy { border-color: #2a8a3a; background: #eef8f0; }
 .look { border-color: #c98a00; background: #fdf6e3; }
 .sick { border-color: #c62828; background: #fdecec; }
 section { display: flex; flex-wrap: wrap; gap: 1.2rem; }
 figure { margin: 0; width: 440px; }
 figcaption { font-size: 12px; display: flex; justify-content: space-between; gap: 1rem; }
 figcaption b { font-variant-numeric: tabular-nums; }
 svg { display: block; border-bottom: 1px solid #ccc; }
 svg text { font-size: 9px; fill: #888; }
 table { border-collapse: collapse; }
 td, th { padding: 2px 14px 2px 0; text-align: left; vertical-align: top;
   font-variant-numeric: tabular-nums; }
 td { max-width: 46rem; }
 small { color: #666; }
</style>
<h1>$name</h1>
<div class="verdict $verdict"><b>$title</b>: $place$findings</div>
$body
<p><small>Curves show the mean, and the least and largest values around it. Shades are stages,
dashed lines restarts, red lines alarms. Written at $time.</small></p>
</html>
""")


def draw_page(run: WatchedRun, now: float) -> str:
    """Draws the page.

    Args:
      run: as it was read.
      now: seconds since 1970.

    Returns:
      HTML that refers to no other file.
    """
    summary = summarize(run, now)
    findings = "".join(f"<li>{_text(f'{x.rule}: {x.text}')}</li>" for x in summary.findings)
    parts = []
    for group, curves in groupby(draw_curves(run, COLUMNS), key=lambda curve: curve.group):
        charts = f"<section>{''.join(_chart(run, curve) for curve in curves)}</section>"
        more = f"<details><summary>All other numbers</summary>{charts}</details>"
        parts.append(more if group == "More" else f"<h2>{group}</h2>\n{charts}")
    parts += ["<h2>Stages</h2>", _table(("stage", "steps", "done", "time"), _stages(run))]
    heads = ("start", "from step", "before it", "devices")
    parts += ["<h2>Starts</h2>", _table(heads, _starts(run))]
    if run.alarms:
        rows = [(f"{x.step:,}", _over(x.over), x.objective, x.text) for x in run.alarms]
        parts += ["<h2>Alarms</h2>", _table(("from step", "to", "objective", "alarm"), rows)]
    texts = {finding.rule: finding.text for finding in summary.findings}
    rules = [(x.name, texts.get(x.name, "no"), x.statement) for x in RULES]
    parts += ["<h2>Rules</h2>", _table(("rule", "holds", "when"), rules)]
    return _PAGE.substitute(
        name=_text(run.name),
        verdict=summary.verdict,
        title=summary.verdict.upper(),
        place=_text(summary.place),
        findings=f"<ul>{findings}</ul>" if findings else "",
        body="\n".join(parts),
        time=_clock(now),
    )


def _chart(run: WatchedRun, curve: Curve) -> str:
    """One curve, with its scale, behind it the stages, restarts and alarms."""
    last = max(run.step, 1)

    def x(step: int) -> float:
        return WIDTH * step / last

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - 2) * (1 - curve.height(value)) + 1

    marks = [_shade(stage, i, last) for i, stage in enumerate(run.stages) if stage.first < last]
    marks += [_line(x(start.step), "#888", "3 3") for start in run.starts[1:]]
    marks += [_line(x(alarm.step), "#c62828", "none") for alarm in run.alarms]
    columns = [column for column in curve.columns if column]
    means = [(x(column.step), y(column.mean)) for column in columns]
    edges = [(x(column.step), y(column.high)) for column in columns]
    edges += [(x(column.step), y(column.low)) for column in reversed(columns)]
    marks.append(f'<polygon points="{_points(edges)}" fill="#9db8e8" stroke="#9db8e8"/>')
    marks.append(f'<polyline points="{_points(means)}" fill="none" stroke="#1f4e9c"/>')
    if len(columns) < COLUMNS / 4:  # such as scores
        marks += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2" fill="#1f4e9c"/>' for a, b in means]
    scale = f"{curve.low:.4g} to {curve.high:.4g}{', logarithmic' if curve.log else ''}"
    return (
        f"<figure><figcaption>{_text(curve.name)}<b>{curve.newest:.5g}</b></figcaption>"
        f'<svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{_text(curve.name)}">'
        f"{''.join(marks)}</svg>"
        f"<figcaption><small>{scale}</small><small>step {run.step:,}</small></figcaption></figure>"
    )


def _shade(stage: Stage, index: int, last: int) -> str:
    left, right = (WIDTH * min(step, last) / last for step in (stage.first, stage.end))
    colour = ("#f4f4f4", "#e9eef7")[index % 2]
    return (
        f'<rect x="{left:.1f}" width="{right - left:.1f}" height="{HEIGHT}" fill="{colour}"/>'
        f'<text x="{left + 2:.1f}" y="9">{_text(stage.name)}</text>'
    )


def _line(x: float, colour: str, dashes: str) -> str:
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT}" stroke="{colour}" '
        f'stroke-dasharray="{dashes}"/>'
    )


def _points(places: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _stages(run: WatchedRun) -> list[tuple[str, ...]]:
    """Each stage, its steps, how much of it is done, and the time from its first line to its last.

    Pauses between lives of the run count.
    """
    times = run.history.get(TIME)
    steps, seconds = times.steps(), times.values()
    rows = []
    for stage in run.stages:
        inside = seconds[(steps > stage.first) & (steps <= stage.end)]
        took = words(float(inside[-1] - inside[0])) if len(inside) > 1 else ""
        done = min(max(run.step - stage.first, 0) / max(stage.end - stage.first, 1), 1.0)
        rows.append((stage.name, f"{stage.first:,} to {stage.end:,}", f"{done:.0%}", took))
    return rows


def _starts(run: WatchedRun) -> list[tuple[str, ...]]:
    named = {None: "", "": "killed, or its host lost"}
    return [
        (_clock(x.time), f"{x.step:,}", named.get(x.before, x.before or ""), x.kind)
        for x in run.starts
    ]


def _over(step: int | None) -> str:
    return "lasts" if step is None else f"{step:,}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{_text(x)}</td>' for x in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _text(value: str) -> str:
    return html.escape(value)
