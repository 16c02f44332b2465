"""Starts, ends and alarms of a run, as `events.jsonl` keeps them."""

import json
import logging

import jax
import pytest
from train.runs import run, stage

from siglip2_jax.objectives.base import Objective
from siglip2_jax.train.alarms import Alarms
from siglip2_jax.train.loop import StageRun, train
from siglip2_jax.watch.run import WatchedRun


@pytest.fixture
def ending(monkeypatch, tmp_path):
    """Runs two stages, without training, whose first ends in some way; gives the events."""

    def end(result):
        def run_stage(self):
            if isinstance(result, BaseException):
                raise result
            return result

        monkeypatch.setattr(StageRun, "run", run_stage)
        monkeypatch.setattr(StageRun, "__init__", lambda self, *rest: None)
        monkeypatch.setattr(StageRun, "check", lambda self: None)
        config = run(stage(batch_size=16), stage("second", 5, batch_size=16))
        if isinstance(result, BaseException):
            with pytest.raises(type(result), match=str(result) or "^$"):
                train(config, tmp_path)
        else:
            assert train(config, tmp_path) == result
        text = (tmp_path / "events.jsonl").read_text()
        return [json.loads(line) for line in text.split("\n")[:-1]]

    return end


def test_starts_and_ends(ending, tmp_path):
    first, last = ending(ValueError("the loss\nis not finite"))
    stages = [{"name": "main", "first": 0, "end": 10}, {"name": "second", "first": 10, "end": 15}]
    facts = {"processes": 1, "devices": jax.device_count(), "kind": "cpu", "save_every": 1000}
    assert first == {
        "step": 0, "time": first["time"], "event": "start", "stages": stages, **facts
    }  # fmt: skip
    assert last | {"time": 0} == {
        "step": 0, "time": 0, "event": "end", "reason": "the loss is not finite"
    }  # fmt: skip
    for result, reason in ((False, "SIGTERM"), (KeyboardInterrupt(), "KeyboardInterrupt")):
        assert ending(result)[-1]["reason"] == reason
    events = ending(True)
    assert [x["event"] for x in events] == ["start", "end"] * 4
    watched = WatchedRun(tmp_path)
    assert watched.state == "complete" and watched.last_step == 15
    befores = [None, "the loss is not finite", "SIGTERM", "KeyboardInterrupt"]
    assert [x.before for x in watched.starts] == befores


class Low(Objective):
    """An objective that wants its number above 1, and another one above 2."""

    def alarms(self, report):
        names = {"a": 1.0, "b": 2.0}
        return tuple(f"{name} is low." for name, limit in names.items() if report[name] < limit)


def test_alarms_are_told_once(caplog):
    notes = []
    alarms = Alarms({"low": Low()}, lambda *note: notes.append(note))
    values = [(5.0, 5.0), (0.0, 5.0), (0.0, 0.0), (5.0, 5.0), (5.0, 5.0), (5.0, 0.0)]
    with caplog.at_level(logging.WARNING):
        for step, (a, b) in enumerate(values):
            alarms.look(
                step, {"low/a": float(a), "low/b": float(b), "loss/low": 0.0, "lower/a": -1.0}
            )
    assert notes == [
        (1, "alarm", {"objective": "low", "text": "a is low."}),
        (3, "alarm", {"objective": "low", "text": ""}),
        (5, "alarm", {"objective": "low", "text": "b is low."}),
    ]
    logged = [line.getMessage() for line in caplog.records]
    assert logged == ["step 1, low: a is low.", "step 5, low: b is low."]
