"""Runs of checks: time limits, errors, several processes, and the table."""

import dataclasses
import json
import threading

import pytest

from siglip2_jax.doctor.check import Check, at_least, at_most, failed, passed, skipped
from siglip2_jax.doctor.examine import agree, examine, merge, run_checks
from siglip2_jax.doctor.report import report

GOOD = Check("good", lambda: [passed("good", "1 ms")])


def never(reason):
    return reason


def statuses(findings):
    return [(x.check, x.status) for x in findings]


@pytest.mark.parametrize(
    ("value", "status"), [(1.0, "PASS"), (1.1, "FAIL"), (float("nan"), "FAIL")]
)
def test_a_value_against_its_limit(value, status):
    finding = at_most("error", value, 1.0, "{:.1f} units", "--set a=b")
    assert (finding.status, finding.expected) == (status, "at most 1.0 units")
    assert finding.way_out == ("--set a=b" if status == "FAIL" else "")
    assert at_least("rate", -value, -1.0).status == status


def test_an_error_is_a_fail_with_its_sentence():
    def missing():
        open("/absent/file")

    def wrong():
        raise ValueError("there is\nno tokenizer")

    def broken():
        raise KeyError("x")

    checks = [Check(f.__name__, f, way_out="mend it") for f in (missing, wrong, broken)]
    findings, stuck = run_checks([lambda: [*checks, GOOD]], 60.0, never)
    assert [x.measured for x in findings[:3]] == [
        "/absent/file: No such file or directory",
        "there is no tokenizer",
        "KeyError: 'x'",
    ]
    assert {(x.status, x.way_out) for x in findings[:3]} == {("FAIL", "mend it")}
    assert findings[3].status == "PASS" and not stuck


@pytest.mark.parametrize("late", ["FAIL", "SKIP"])
def test_work_that_does_not_end(late):
    def fail_to_make():
        raise AssertionError("devices may be what is stuck")

    release = threading.Event()
    hanging = Check("hanging", lambda: [] if release.wait(60) else [], late)
    findings, stuck = run_checks([lambda: [GOOD, hanging, GOOD], fail_to_make], 0.2, never)
    release.set()
    assert statuses(findings) == [
        ("good", "PASS"),
        ("hanging", late),
        ("good", "SKIP"),
        ("other checks", "SKIP"),
    ]
    assert stuck and "not done after" in findings[1].measured
    assert findings[2].measured == "hanging had not ended"


def test_checks_that_no_time_is_left_for():
    late = dataclasses.replace(GOOD, share=0.0)
    findings, stuck = run_checks([lambda: [late, GOOD]], 60.0, never)
    assert statuses(findings) == [("good", "SKIP"), ("good", "PASS")] and not stuck
    assert findings[0].measured == "0% of the 60 seconds were over"


def test_a_process_that_does_not_answer_stops_all(monkeypatch):
    monkeypatch.setattr("siglip2_jax.doctor.examine.gather", lambda text, seconds: [text, None])
    assert agree("") == "process 1 does not answer"
    assert agree("late") == "late"
    findings, _ = run_checks([lambda: [GOOD]], 60.0, agree)
    assert findings[0].status == "SKIP" and "process 1" in findings[0].measured


def answer(host, *findings):
    return json.dumps({"host": host, "findings": [x.to_json() for x in findings]})


def test_processes_that_differ_are_named():
    good, bad = passed("workdir", "1 ms"), failed("workdir", "no right", way_out="another")
    same = skipped("clocks", "none")
    merged = merge([answer("a", good, same), answer("b", bad, same), None])
    assert statuses(merged) == [("workdir", "FAIL"), ("clocks", "SKIP"), ("answers", "FAIL")]
    assert merged[0].place == "process 1 on b" and merged[0].way_out == "another"
    assert merged[1].place == "all 3 processes"
    assert merged[2].measured == "process 2 gave none"
    many = merge([answer(str(i), bad) for i in range(20)])
    assert len(many) == 8 and many[-1].place == "process 7 on 7, and 12 more"
    assert merge([answer("a", good)]) == [good]


def test_the_table():
    findings = [
        passed("disk", "3 GiB", "at least 2 GiB"),
        failed("workdir: write", "x" * 100, "no error", "choose another"),
        skipped("clocks", "there is one process"),
    ]
    lines = report(findings).splitlines()
    assert lines[1].split() == ["PASS", "disk", "3", "GiB", "at", "least", "2", "GiB"]
    assert lines[2].startswith("FAIL  workdir: write") and "x …" in lines[2]
    assert lines[5] == f"workdir: write: {'x' * 100}, expected no error"
    assert lines[6] == "  choose another"
    assert lines[-1] == "1 pass, 1 fail, 1 skipped"


def test_an_examination_of_one_process():
    examination = examine([lambda: [GOOD]], 60.0)
    assert examination.healthy and not examination.stuck
    assert not examine([lambda: [Check("bad", lambda: [failed("bad", "it")])]], 60.0).healthy
