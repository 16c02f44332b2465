"""Rules of `siglip2 watch`: each holds on a sick run, and none on a healthy one."""

import math
from pathlib import Path

import pytest
from watch.watched import BEGIN, SECONDS, alarm, end, lines, start, write

from siglip2_jax.watch.rules import RULES, judge, verdict
from siglip2_jax.watch.run import WatchedRun
from siglip2_jax.watch.summary import summarize

DOCS = Path(__file__).parents[2] / "docs" / "training.md"


def late(i, first, name, value):
    """Another number from some line on."""
    return {name: value} if i >= first else {}


def findings(tmp_path, rows, events=None, after=30.0):
    """Rules that hold on a run, `after` seconds after its last line."""
    run = WatchedRun(write(tmp_path / "run", rows, events))
    now = (rows[-1]["time"] if rows else BEGIN) + after
    return {x.rule: x.text for x in judge(run, now)}, run, now


SICK = {
    "failed": (lambda: lines(50), [start(), end(500, "the loss of step 501 is not finite")]),
    "no progress": (lambda: lines(105), [start(), *(start(1000, 2000 + i) for i in range(3))]),
    "not finite": (lambda: lines(50, lambda i: late(i, 50, "grad_norm", math.inf)), None),
    "diverged": (
        lambda: lines(190, lambda i: late(i, 150, "loss", 0.42 + 0.01 * math.sin(i))),
        None,
    ),
    "constant": (lambda: lines(50, lambda i: late(i, 41, "loss", 0.3)), None),
    "loss spike": (lambda: lines(190, lambda i: {"loss": 2.0} if i == 120 else {}), None),
    "slower": (
        lambda: lines(190, lambda i: late(i, 170, "examples_per_s_per_chip", 70.0)),
        None,
    ),
    "input-bound": (lambda: lines(50, lambda i: late(i, 42, "data_wait", 0.3)), None),
    "lost workers": (lambda: lines(50, lambda i: late(i, 40, "data/worker_restarts", 2.0)), None),
    "alarm": (lambda: lines(50), [start(), alarm(300, "The targets are nearly uniform.")]),
    "never evaluated": (
        lambda: [{k: x for k, x in row.items() if "eval" not in k} for row in lines(31)],
        None,
    ),
    "score fell": (
        lambda: lines(90, lambda i: {"eval/val/text_to_image@10": 0.3} if i == 90 else {}),
        None,
    ),
    "stopped": (lambda: lines(50), [start(), end(500, "SIGTERM")]),
}


@pytest.mark.parametrize("rule", SICK)
def test_each_rule_holds_on_its_sick_run(tmp_path, rule):
    make, events = SICK[rule]
    held, run, now = findings(tmp_path, make(), events)
    assert list(held) == [rule]
    sick = {x.name: x.sick for x in RULES}[rule]
    assert summarize(run, now).verdict == ("sick" if sick else "look")


def test_every_rule_has_a_sick_run():
    assert SICK.keys() | {"stalled"} == {rule.name for rule in RULES}


NEARLY = {
    "of every length": (lambda n: lines(n), None),
    "complete": (lambda n: lines(300), [start(), end(3000, "complete")]),
    "restarted after an end": (
        lambda n: lines(50),
        [start(), end(100, "the disk is full"), start(100), end(200, "SIGTERM"), start(200)],
    ),
    "three starts, and progress": (lambda n: lines(n), [start(), start(), start()]),
    "three starts at other steps": (lambda n: lines(5), [start(), start(0), start(10)]),
    "a score that was NaN once": (
        lambda n: lines(n, lambda i: {"eval/val/text_to_image@10": math.nan} if i == 10 else {}),
        None,
    ),
    "a loss that rises by a sixth": (
        lambda n: lines(190, lambda i: late(i, 150, "loss", 0.34 + 0.01 * math.sin(i))),
        None,
    ),
    "nine equal losses": (lambda n: lines(50, lambda i: late(i, 42, "loss", 0.3)), None),
    "a spike long ago": (lambda n: lines(195, lambda i: {"loss": 2.0} if i == 21 else {}), None),
    "another loss in the next stage": (
        lambda n: lines(260, lambda i: late(i, 201, "loss", 3 + 0.1 * math.sin(i))),
        None,
    ),
    "another rate in the next stage": (
        lambda n: lines(290, lambda i: late(i, 201, "examples_per_s_per_chip", 30.0)),
        None,
    ),
    "a little slower": (
        lambda n: lines(190, lambda i: late(i, 170, "examples_per_s_per_chip", 80.0)),
        None,
    ),
    "waiting on a CPU": (lambda n: lines(50, lambda i: {"data_wait": 0.9}), [start(kind="cpu")]),
    "an alarm that is over": (lambda n: lines(50), [start(), alarm(300, "Low."), alarm(400, "")]),
    "an alarm of the stage before": (lambda n: lines(210), [start(), alarm(300, "Low.")]),
    "an alarm before a restart": (lambda n: lines(50), [start(), alarm(300, "Low."), start(300)]),
    "no events": (lambda n: lines(190), []),
    "scores that vary": (
        lambda n: lines(90, lambda i: {"eval/val/text_to_image@10": 0.46} if i == 90 else {}),
        None,
    ),
    "an error that falls": (
        lambda n: lines(90, lambda i: {"eval/val/calibration_error": 1 / i}),
        None,
    ),
    "no line yet": (lambda n: [], None),
}


@pytest.mark.parametrize("kind", NEARLY)
def test_no_rule_holds_on_a_healthy_run(tmp_path, kind):
    make, events = NEARLY[kind]
    sizes = (1, 2, 19, 40, 61, 140, 199, 201, 245, 299) if kind == "of every length" else (150,)
    for n in sizes:
        held, run, now = findings(tmp_path, make(n), events)
        assert held == {} and verdict(judge(run, now)) == "healthy", n


def test_silence(tmp_path):
    """Ten minutes, five of the longest pauses, and an hour where nothing came yet."""
    rows = lines(50)
    for after, stalls in ((590, False), (610, True)):
        assert ("stalled" in findings(tmp_path, rows, after=after)[0]) == stalls
    rows[-1]["time"] += 180  # a pause of 200 s, for an evaluator
    for after, stalls in ((990, False), (1010, True)):
        assert ("stalled" in findings(tmp_path, rows, after=after)[0]) == stalls
    for after, stalls in ((3590, False), (3610, True)):
        assert ("stalled" in findings(tmp_path, [], after=after)[0]) == stalls
    # The hour begins again with a restart, and pauses between lives do not count.
    gone = [start(), start(500, after=50 * SECONDS + 5000)]
    assert findings(tmp_path, lines(50), gone, after=5000 + 3590)[0] == {}
    assert "stalled" in findings(tmp_path, lines(50), gone, after=5000 + 3610)[0]
    ended = [start(), end(500, "complete")]
    assert findings(tmp_path, lines(50), ended, after=1e6)[0] == {}


def test_the_worst_comes_first(tmp_path):
    events = [start(), alarm(100, "Low."), end(500, "the disk is full")]
    held, run, now = findings(tmp_path, lines(50, lambda i: {"data_wait": 0.5}), events)
    assert list(held) == ["failed", "input-bound", "alarm"]
    assert held["failed"] == "the disk is full"
    assert held["alarm"] == "since step 100, self_distill: Low."
    assert summarize(run, now).verdict == "sick"


def test_docs_state_every_rule():
    text = " ".join(DOCS.read_text().split())
    for rule in RULES:
        mark = "sick" if rule.sick else "look"
        assert f"| {rule.name} | {mark} | {rule.statement} |" in text, rule.name


def test_a_finding_has_the_numbers(tmp_path):
    make, events = SICK["not finite"]
    held, _, _ = findings(tmp_path, make(), events)
    assert held["not finite"] == "grad_norm is inf at step 500"
