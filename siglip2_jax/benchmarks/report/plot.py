"""Small line charts of a number against the tokens an image has, as SVG within a page."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Iterator, Sequence
from typing import Literal

WIDTH, HEIGHT = 380, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 14, 30, 34
_LEGEND_GAP, _LEGEND_LINE = 8, 16
_LABEL_GAP = 26

PALETTE = ("#2f6fd0", "#d0632f", "#2f9d72", "#8a56c2", "#b8962a")
GREY = "#8a8a8a"


@dataclasses.dataclass(frozen=True)
class Series:
    """Points that belong together.

    Attributes:
      name: in the legend.
      points: tokens (above 0) and value of each, in increasing order of tokens.
      colour: as in CSS.
      style: "line" and "dashed" join the points; "marks" are hollow points alone.
    """

    name: str
    points: tuple[tuple[int, float], ...]
    colour: str
    style: Literal["line", "dashed", "marks"] = "line"


def plot(title: str, series: Sequence[Series]) -> str:
    """Draws a chart: tokens across on a logarithmic scale, values up.

    Args:
      title: above it.
      series: at least one point in all; later ones lie on top.

    Returns:
      An `<svg>` element of `WIDTH` pixels, with a legend, that refers to no other file.
    """
    points = [point for one in series for point in one.points]
    axes = _Axes.around(points)
    height = HEIGHT + _LEGEND_GAP + _LEGEND_LINE * len(series)
    body = [
        f'<text x="{_LEFT}" y="16" class="title">{html.escape(title)}</text>',
        *axes.draw(sorted({tokens for tokens, _ in points})),
    ]
    for one in series:
        body.extend(_series(one, axes))
    for i, one in enumerate(series):
        body.append(_legend(one, HEIGHT + _LEGEND_GAP + _LEGEND_LINE * i + 4))
    inside = "\n".join(body)
    return (
        f'<svg class="plot" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'role="img" aria-label="{html.escape(title)}">\n{inside}\n</svg>'
    )


@dataclasses.dataclass(frozen=True)
class _Axes:
    """Axes of a plot: ranges of log2 of the tokens and of the values."""

    x: tuple[float, float]
    y: tuple[float, float]
    step: float

    @classmethod
    def around(cls, points: Sequence[tuple[int, float]]) -> _Axes:
        x = [math.log2(tokens) for tokens, _ in points]
        y = [value for _, value in points]
        step = _round_step(max(max(y) - min(y), 1e-3) / 4)
        low, high = math.floor(min(y) / step), math.ceil(max(y) / step)
        ends = low * step, max(high, low + 1) * step
        return cls((min(x) - 0.2, max(x) + 0.2), ends, step)

    def place(self, tokens: int, value: float) -> tuple[float, float]:
        across = (math.log2(tokens) - self.x[0]) / (self.x[1] - self.x[0])
        up = (value - self.y[0]) / (self.y[1] - self.y[0])
        return (
            _LEFT + across * (WIDTH - _LEFT - _RIGHT),
            HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM),
        )

    def draw(self, budgets: Sequence[int]) -> Iterator[str]:
        digits = max(0, -math.floor(math.log10(self.step) + 1e-9))
        for i in range(round((self.y[1] - self.y[0]) / self.step) + 1):
            value = self.y[0] + i * self.step
            y = self.place(budgets[0], value)[1]
            yield f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>'
            yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" class="end">{value:.{digits}f}</text>'
        last = -math.inf
        for tokens in budgets:
            x = self.place(tokens, self.y[0])[0]
            if x - last >= _LABEL_GAP:
                yield f'<text x="{x:.1f}" y="{HEIGHT - _BOTTOM + 16}" class="mid">{tokens}</text>'
                last = x
        middle = (_LEFT + WIDTH - _RIGHT) / 2
        yield f'<text x="{middle:.0f}" y="{HEIGHT - 4}" class="mid">tokens of an image</text>'


def _round_step(step: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * k for k in (1, 2, 5, 10) if power * k >= step * (1 - 1e-9))


def _series(one: Series, axes: _Axes) -> Iterator[str]:
    places = [axes.place(tokens, value) for tokens, value in one.points]
    if one.style != "marks" and len(places) > 1:
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        yield f'<path d="M{path}" fill="none" {_stroke(one)}/>'
    for (tokens, value), (x, y) in zip(one.points, places, strict=True):
        label = html.escape(f"{one.name}: {value:.4g} at {tokens} tokens")
        yield f"{_dot(one, x, y)}<title>{label}</title></circle>"


def _legend(one: Series, y: int) -> str:
    line = "" if one.style == "marks" else f'<path d="M{_LEFT} {y}h24" {_stroke(one)}/>'
    return (
        f"{line}{_dot(one, _LEFT + 12.0, float(y))}</circle>"
        f'<text x="{_LEFT + 32}" y="{y + 4}">{html.escape(one.name)}</text>'
    )


def _stroke(one: Series) -> str:
    dashes = ' stroke-dasharray="5 4"' if one.style == "dashed" else ""
    return f'stroke="{one.colour}" stroke-width="2"{dashes}'


def _dot(one: Series, x: float, y: float) -> str:
    """An open `<circle>`."""
    fill, radius = ("#fff", 4) if one.style == "marks" else (one.colour, 3)
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{fill}" stroke="{one.colour}" '
        'stroke-width="1.5">'
    )
