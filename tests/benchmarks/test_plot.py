"""A plot is well-formed, and its points are where their values say."""

import itertools
import math
from xml.etree import ElementTree

import pytest

from siglip2_jax.benchmarks.report.plot import HEIGHT, WIDTH, Series, plot


def drawn(*series: Series, title: str = "t") -> ElementTree.Element:
    return ElementTree.fromstring(plot(title, series))


def dots(svg: ElementTree.Element) -> list[tuple[float, float, str]]:
    """Places and tooltips of points; those of the legend have no tooltip."""
    found = []
    for circle in svg.iter("circle"):
        if (label := circle.findtext("title")) is not None:
            found.append((float(circle.get("cx")), float(circle.get("cy")), label))
    return found


def ticks(svg: ElementTree.Element) -> list[tuple[float, float]]:
    """Value and height of each line of the grid."""
    lines = [path for path in svg.iter("path") if path.get("class") == "grid"]
    texts = [text for text in svg.iter("text") if text.get("class") == "end"]
    heights = [float(line.get("d").split()[1].split("H")[0]) for line in lines]
    return [(float(x.text), y) for x, y in zip(texts, heights, strict=True)]


def test_points_fit_the_grid_and_a_logarithmic_scale():
    points = ((64, 71.2), (144, 76.2), (256, 78.5), (1024, 80.4))
    svg = drawn(Series("ours", points, "#000"))
    (low, bottom), *_, (high, top) = ticks(svg)
    assert low <= 71.2 and 80.4 <= high and top < bottom
    places = dots(svg)
    for (_, value), (_, y, _) in zip(points, places, strict=True):
        up = (value - low) / (high - low)
        assert y == pytest.approx(bottom + up * (top - bottom), abs=0.2)
    xs = [x for x, *_ in places]
    per_octave = (xs[-1] - xs[0]) / 4
    for (tokens, _), x in zip(points, xs, strict=True):
        assert x == pytest.approx(xs[0] + per_octave * math.log2(tokens / 64), abs=0.2)


@pytest.mark.parametrize(
    "values", [(0.5, 0.5), (0.466, 0.493), (0.0, 100.0), (71.19, 71.21), (3.4, 9.1)]
)
def test_the_grid_has_a_few_round_lines(values):
    svg = drawn(Series("ours", ((64, values[0]), (256, values[1])), "#000"))
    found = ticks(svg)
    assert 2 <= len(found) <= 7
    numbers = [number for number, _ in found]
    assert numbers[0] <= min(values) and max(values) <= numbers[-1]
    steps = {round(b - a, 9) for a, b in itertools.pairwise(numbers)}
    (step,) = steps
    mantissa = step / 10 ** math.floor(math.log10(step))
    assert round(mantissa, 6) in (1, 2, 5, 10)


def test_everything_is_inside_the_picture():
    many = tuple((tokens, 50.0) for tokens in (64, 144, 256, 576, 676, 784, 900, 1024))
    svg = drawn(Series("a", many, "#000"), Series("b", ((49, 0.0), (4096, 99.9)), "#111", "marks"))
    for x, y, _ in dots(svg):
        assert 0 < x < WIDTH and 0 < y < HEIGHT
    labels = [
        float(text.get("x"))
        for text in svg.iter("text")
        if text.get("class") == "mid" and text.text.isdigit()
    ]
    assert all(b - a >= 26 for a, b in itertools.pairwise(labels))
    assert float(svg.get("height")) == HEIGHT + 8 + 32


def test_styles_tell_series_apart():
    points = ((64, 1.0), (256, 2.0))
    svg = drawn(
        Series("line", points, "red"),
        Series("dashed", points, "grey", "dashed"),
        Series("marks", points, "grey", "marks"),
        Series("one", points[:1], "blue"),
    )
    joined = [path for path in svg.iter("path") if path.get("fill") == "none"]
    assert [path.get("stroke") for path in joined] == ["red", "grey"]
    assert [path.get("stroke-dasharray") for path in joined] == [None, "5 4"]
    assert len(dots(svg)) == 7


def test_names_are_text():
    nasty = '<script>&"'
    svg = drawn(Series(nasty, ((64, 1.0),), "#000"), title=nasty)
    assert svg.get("aria-label") == nasty
    assert nasty in [text.text for text in svg.iter("text")]
    assert dots(svg)[0][2] == f"{nasty}: 1 at 64 tokens"
    assert not list(svg.iter("script"))
