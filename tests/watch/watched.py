"""Workdirs of runs that were never trained, as files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from siglip2_jax.train.metrics import EVENTS, METRICS

BEGIN, SECONDS, EVERY = 1_790_000_000.0, 20.0, 10  # of a line
STAGES = [{"name": "main", "first": 0, "end": 2000}, {"name": "naflex", "first": 2000, "end": 3000}]


def numbers(i: int) -> dict[str, float]:
    """The numbers of line `i` of a healthy run."""
    noise = np.random.default_rng(i).normal(size=3)
    loss = 0.3 + 9 * math.exp(-i / 20) + 0.01 * noise[0]
    values = {"loss": loss, "loss/sigmoid": loss, "grad_norm": 2 + 0.1 * noise[1]}
    values |= {"examples_per_s_per_chip": 100 + noise[2], "data_wait": 0.02}
    values |= {"data/worker_restarts": 0.0}
    if i % 10 == 0:
        values |= {"eval/val/text_to_image@10": 0.5 - 0.4 * math.exp(-i / 30)}
    return values


def lines(
    count: int, change: Callable[[int], Mapping[str, float]] = lambda i: {}, first: int = 1
) -> list[dict[str, Any]]:
    """Lines of a run; `change` gives a line other numbers than a healthy run has."""
    places = range(first, first + count)
    return [
        {"step": EVERY * i, "time": BEGIN + SECONDS * i} | numbers(i) | dict(change(i))
        for i in places
    ]


def start(step: int = 0, after: float = 0.0, **facts: Any) -> dict[str, Any]:
    """The start of a run on a TPU."""
    event = {"step": step, "time": BEGIN + after, "event": "start", "stages": STAGES}
    return event | {"save_every": 100, "kind": "TPU v5 lite", "devices": 256} | facts


def end(step: int, reason: str) -> dict[str, Any]:
    """An end that the run itself has noted."""
    return {"step": step, "time": BEGIN + SECONDS * step / EVERY, "event": "end", "reason": reason}


def alarm(step: int, text: str) -> dict[str, Any]:
    """An objective's alarm, or its end."""
    facts = {"event": "alarm", "objective": "self_distill", "text": text}
    return {"step": step, "time": BEGIN, **facts}


def text(rows: list[dict[str, Any]]) -> str:
    """Rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(workdir: Path, rows: list[dict], events: list[dict] | None = None) -> Path:
    """Writes a workdir."""
    workdir.mkdir(exist_ok=True)
    (workdir / METRICS).write_text(text(rows))
    if events != []:
        (workdir / EVENTS).write_text(text([start()] if events is None else events))
    return workdir
