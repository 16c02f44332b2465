"""Workdirs whose files hold other things than a run writes: the rest is shown, all is counted."""

import importlib.util
import json
import random
from pathlib import Path

import pytest
from watch import watched

from siglip2_jax.train.metrics import EVENTS, METRICS
from siglip2_jax.watch.page import draw_page
from siglip2_jax.watch.run import WatchedRun
from siglip2_jax.watch.summary import to_json
from siglip2_jax.watch.terminal import draw

NOW = watched.BEGIN + 9000
ODD = [
    {"event": "alarm"},
    {"event": "end", "reason": None},
    {"event": "start"},
    watched.start(stages=[{"name": "main"}]),
    watched.start(stages=3),
    watched.start(save_every="often"),
    watched.start() | {"time": float("inf")},
    watched.end(1, "x") | {"step": "one"},
    watched.alarm(1, "x") | {"step": 2**70},
    {"event": ["end"], "step": 1},
]


def shown(workdir: Path) -> str:
    run = WatchedRun(workdir)
    texts = draw_page(run, NOW), str(draw(run, NOW, 80)), json.dumps(to_json(run, NOW))
    return "".join(texts).encode().decode()


@pytest.mark.parametrize("odd", ODD, ids=json.dumps)
def test_an_event_that_no_run_writes_is_counted(tmp_path, odd):
    (tmp_path / METRICS).write_text(watched.text(watched.lines(20)))
    (tmp_path / EVENTS).write_text(watched.text([watched.start(), odd]))
    shown(tmp_path)
    run = WatchedRun(tmp_path)
    assert run.unreadable == 1 and len(run.starts) == 1 and run.state == "running"
    assert not run.alarms and run.last_step == 3000


@pytest.mark.parametrize(
    "odd", [{"time": 1e300}, {"time": "now"}, {"step": 2**70}, {"step": True}], ids=json.dumps
)
def test_numbers_that_no_run_writes_are_counted(tmp_path, odd):
    (tmp_path / METRICS).write_text(watched.text([*watched.lines(20), watched.lines(1)[0] | odd]))
    shown(tmp_path)
    run = WatchedRun(tmp_path)
    assert (run.unreadable, run.step) == (1, 200)


def test_names_that_cannot_be_printed_are_left_out(tmp_path):
    line = watched.lines(1)[0] | {"\ud800": 1.0, "a\nb": 2.0, "huge": 10**400}
    (tmp_path / METRICS).write_text(watched.text([line]))
    assert WatchedRun(tmp_path).history.series.keys() == watched.lines(1)[0].keys() - {"step"}
    shown(tmp_path)


@pytest.mark.slow
def test_mutated_files_are_shown(tmp_path):
    path = Path(__file__).parents[2] / "scripts" / "campaigns" / "mutations.py"
    spec = importlib.util.spec_from_file_location("mutations", path)
    mutations = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutations)
    events = [watched.start(), watched.alarm(100, "x"), watched.end(200, "SIGTERM")]
    unreadable = 0
    for number in range(60):
        rng = random.Random(number)
        for name, rows in ((METRICS, watched.lines(20)), (EVENTS, events)):
            content = [json.dumps(row).encode() for row in rows]
            place = rng.randrange(len(rows))
            change = rng.choice((mutations.change_json, mutations.change_bytes))
            content[place] = change(content[place], rng)
            (tmp_path / name).write_bytes(b"\n".join(content) + b"\n")
        shown(tmp_path)
        unreadable += WatchedRun(tmp_path).unreadable
    assert unreadable > 10
