"""Starts, alarms and ends of a run, as lines of its `events.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from siglip2_jax.watch.history import TIME, is_step, is_time, parse


class Stage(NamedTuple):
    """Steps of a stage: those after `first`, up to `end`."""

    name: str
    first: int
    end: int


class Start(NamedTuple):
    """Start of a run, the first one or a restart.

    Attributes:
      step: that it goes on from.
      time: seconds since 1970.
      save_every: steps between checkpoints.
      kind: of its devices.
      stages: of the run.
      before: reason for which the run had ended; None for the first start, "" where it was killed.
    """

    step: int
    time: float
    save_every: int
    kind: str
    stages: tuple[Stage, ...]
    before: str | None = None


class Alarm(NamedTuple):
    """Alarm of an objective; `over` is the step at which it was, None while it lasts."""

    step: int
    objective: str
    text: str
    over: int | None = None


class End(NamedTuple):
    """End of a run, for a reason that it has noted itself."""

    step: int
    reason: str


def read_event(line: bytes) -> Start | Alarm | End | None:
    """The event of a line; None where it holds none that a run writes."""
    row = parse(line) or {}
    kind, step = row.get("event"), row.get("step")
    if not is_step(step):
        return None
    try:
        if kind == "start":
            return _start(step, row)
        if kind == "alarm":
            return Alarm(step, _string(row["objective"]), _string(row["text"]))
        if kind == "end":
            return End(step, _string(row["reason"]))
    except (KeyError, TypeError):
        pass
    return None


def _start(step: int, row: Mapping[str, Any]) -> Start:
    stages = tuple(Stage(_string(x["name"]), x["first"], x["end"]) for x in row["stages"])
    numbers = [row["save_every"], *(x for stage in stages for x in stage[1:])]
    if not all(map(is_step, numbers)) or not is_time(row[TIME]):
        raise TypeError
    return Start(step, row[TIME], row["save_every"], _string(row["kind"]), stages)


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value.encode(errors="replace").decode()  # half of a surrogate pair is no text
