"""Arms of a sweep: named changes to one config, from grids of values or spelled out."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

NAME = re.compile(r"[A-Za-z0-9][\w.+=-]*")
PROGRAMS = "programs"
"""Directory beside those of the arms, which holds compiled programs."""


class Arm(NamedTuple):
    """Changes to the config of a sweep.

    Attributes:
      name: made of letters, digits and "_.+=-"; the arm's directory.
      assignments: as for `config.override`.
    """

    name: str
    assignments: tuple[str, ...] = ()


def read_arms(grids: Sequence[str] = (), arms: Sequence[str] = ()) -> list[Arm]:
    """The product of all grids and of the arms that are spelled out, the last grid fastest.

    Commas within brackets or quotes are a part of a value. A grid's values are named by the end of
    its path, as much of it as tells the grids apart: `ratio=0.3`.

    Args:
      grids: such as `objectives.masked.ratio=0.3,0.5`.
      arms: such as `long:stages.main.steps=900,optim.peak_lr=1e-4`, or `usual:` without changes.

    Returns:
      At least one arm; without grids and arms, one without changes.

    Raises:
      ValueError: an option is malformed, or gives a value or a name twice.
    """
    axes = [_explicit(arms)] if arms else []
    paths = [grid.partition("=")[0].strip() for grid in grids]
    axes += [
        _grid(grid, _short(path, paths[:i] + paths[i + 1 :]))
        for i, (grid, path) in enumerate(zip(grids, paths, strict=True))
    ]
    product = [
        Arm(
            "_".join(arm.name for arm in chosen) or "usual",
            tuple(x for arm in chosen for x in arm.assignments),
        )
        for chosen in itertools.product(*axes)
    ]
    for arm in product:
        if len(arm.name) > 200 or arm.name == PROGRAMS:
            raise ValueError(
                f"{arm.name[:40]!r} cannot name a directory of the sweep (it has {len(arm.name)} "
                "characters); give a short name with --arm NAME:PATH=VALUE"
            )
    return product


def split(text: str) -> Iterator[str]:
    """Parts between the commas that are not within brackets or quotes."""
    depth, quote, start = 0, "", 0
    for i, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        elif letter == "," and depth <= 0:
            yield text[start:i].strip()
            start = i + 1
    yield text[start:].strip()


def _explicit(arms: Sequence[str]) -> list[Arm]:
    """The arms that are spelled out."""
    axis = []
    for source in arms:
        name, colon, text = source.partition(":")
        if not colon or not NAME.fullmatch(name):
            raise ValueError(
                f"--arm {source!r} has no name; expected NAME:PATH=VALUE,PATH=VALUE with a name of "
                "letters, digits and _.+=-"
            )
        axis.append(Arm(name, tuple(split(text)) if text.strip() else ()))
    _check_distinct([arm.name for arm in axis], "--arm", "name")
    return axis


def _grid(grid: str, label: str) -> list[Arm]:
    """An arm for each value of a grid."""
    path, equals, text = grid.partition("=")
    values = list(split(text))
    if not (equals and path.strip() and all(values)):
        raise ValueError(f"--grid {grid!r} is no grid; expected PATH=VALUE,VALUE")
    _check_distinct(values, f"--grid {grid}", "value")
    axis = [Arm(f"{label}={_word(value)}", (f"{path.strip()}={value}",)) for value in values]
    _check_distinct([arm.name for arm in axis], f"--grid {grid}", "directory")
    return axis


def _check_distinct(texts: Sequence[str], option: str, kind: str) -> None:
    for i, text in enumerate(texts):
        if text in texts[:i]:
            raise ValueError(f"{option} gives the {kind} {text!r} twice; leave one out")


def _short(path: str, others: Sequence[str]) -> str:
    """The shortest end of a path that no other path ends with."""
    keys = path.split(".")
    for count in range(1, len(keys)):
        end = ".".join(keys[-count:])
        if not any(f".{other}".endswith(f".{end}") for other in others):
            return end
    return path


def _word(value: str) -> str:
    """A value as part of a file name."""
    return re.sub(r"[^\w.+-]+", "-", re.sub(r"[\[\](){}'\"\s]", "", value)).rstrip("-")
