"""Boxes as text, for every value of the grid and every order."""

import pickle
import re
from itertools import permutations

import pytest

from siglip2_jax.data.boxes import SIDES, BoxText


def test_the_text_of_a_box():
    assert BoxText().write((0.0, 0.25, 0.5, 1.0)) == "0 125 250 500"
    assert BoxText(1000, ("xmin", "ymin", "xmax", "ymax")).write((0.1, 0.2, 0.3, 0.4)) == (
        "200 100 400 300"
    )
    assert BoxText(10).write((0.04, 0.06, 0.94, 0.96)) == "0 1 9 10"  # the nearest


@pytest.mark.parametrize("bins", [1, 7, 500, 1000])
def test_grid_boxes_read_back_exactly(bins):
    boxes = [(0.0, i / bins, 1.0, j / bins) for i in range(bins + 1) for j in (i, bins)]
    boxes += [(i / bins, 0.0, j / bins, 1.0) for i in range(bins + 1) for j in (i, bins)]
    codec = pickle.loads(pickle.dumps(BoxText(bins)))
    assert [codec.read(codec.write(box)) for box in boxes] == boxes


@pytest.mark.parametrize("order", list(permutations(SIDES)))
def test_any_order(order):
    codec, values = BoxText(order=order), {"ymin": 1, "xmin": 20, "ymax": 300, "xmax": 499}
    box = tuple(values[side] / 500 for side in SIDES)
    assert codec.write(box) == " ".join(str(values[side]) for side in order)
    assert codec.read(codec.write(box)) == box


@pytest.mark.parametrize("text", ["1 2 3 4", "  1  2 3\n4 ", "1\u00a02 3 4"])
def test_white_space_is_tolerated(text):
    assert BoxText(10).read(text) == (0.1, 0.2, 0.3, 0.4)


@pytest.mark.parametrize(
    "text",
    ["", "a dog", "1 2 3", "1 2 3 4 5", "1 2 3 x", "-1 2 3 4", "1 2 3 501", "1.0 2 3 4", "3 2 1 4"]
    + ["1 4 3 2", "1, 2, 3, 4", "1 2 3 ٤", "1 2 3 +4", "1 2 3 4_0", "1 2 3 " + "9" * 5000],
)
def test_what_is_no_box(text):
    assert BoxText().read(text) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bins": 0}, "BoxText.bins must be at least 1, got 0"),
        ({"order": ("ymin", "ymin", "xmin", "xmax")}, "must name ymin, xmin, ymax, xmax once each"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        BoxText(**options)
