"""`siglip2 doctor`: its exit code, its table, and several hosts."""

import json
import os

import pytest
from train.processes import COMMAND, LIGHT, free_port, started

from siglip2_jax.cli import doctor as command
from siglip2_jax.doctor import checks
from siglip2_jax.doctor.check import Check, failed, passed
from siglip2_jax.doctor.examine import examine

PLAIN = ("--set", "compute.attention=xla", "--set", "compute.norm=xla")


@pytest.mark.slow
def test_a_run_that_is_well(siglip2, tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "SECONDS_OF_DATA", 0.2)
    workdir = tmp_path / "run"
    cache = ("--compilation-cache", "off")
    result = siglip2("doctor", LIGHT, "--workdir", workdir, "--json", *cache, *PLAIN)
    findings = {x["check"]: x for x in json.loads(result.out)["findings"]}
    bad = [x for x in findings.values() if x["status"] == "FAIL"]
    assert [x["check"] for x in bad if not x["check"].startswith("data: ")] == []
    assert result.code == int(bool(bad))  # the data of a step without towers may be too slow
    assert findings["mesh"]["measured"] == "replica 1, fsdp 8"
    assert findings["step: loss"]["status"] == findings["workdir: rename"]["status"] == "PASS"
    assert findings["data: read"]["limit"] > 0 and findings["sum along fsdp"]["status"] == "PASS"
    assert findings["attention, 16 tokens, 2 heads of 16, float32"]["status"] == "SKIP"
    assert not workdir.exists()


def test_the_exit_code_and_the_table(siglip2, monkeypatch):
    findings = [passed("disk", "3 GiB")]
    phase = [lambda: [Check("x", lambda: findings)]]
    monkeypatch.setattr(checks.Doctor, "phases", lambda _: phase)
    result = siglip2("doctor", "tiny", "--no-distributed", "--compilation-cache", "off")
    assert result.code == 0 and result.out.splitlines()[-1] == "1 pass, 0 fail, 0 skipped"
    findings.append(failed("clocks", "5 s apart", "at most 2 s", "run chrony"))
    result = siglip2("doctor", "--compilation-cache", "off")
    assert (
        result.code == 1 and "clocks: 5 s apart, expected at most 2 s\n  run chrony" in result.out
    )


def test_a_stuck_process_ends_at_once(siglip2, monkeypatch):
    monkeypatch.setattr(checks.Doctor, "phases", lambda _: [])
    monkeypatch.setattr("siglip2_jax.doctor.examine.run_checks", lambda *_: ([], True))

    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit) as stop:
        siglip2("doctor", "--compilation-cache", "off")
    assert stop.value.code == 0
    assert examine([], 1.0).stuck


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "steps=1"], "name a CONFIG before them"),
        (["tiny", "--stage", "other"], "there is no stage 'other'; the config has main"),
        (["tinny"], "tiny"),
    ],
)
def test_bad_input(siglip2, words, message):
    result = siglip2("doctor", *words)
    assert result.code == 2 and message in result.err and result.err.count("\n") == 1


@pytest.mark.slow
def test_a_host_that_fails_is_named(tmp_path):
    """The workdir of the second process is below a file; both end alike, and the first one says."""
    (tmp_path / "file").touch()
    port, commands = free_port(), []
    for i, workdir in enumerate((tmp_path / "run", tmp_path / "file" / "run")):
        hosts = ["--coordinator", f"localhost:{port}", "--num-processes", "2"]
        commands.append(
            ["-c", COMMAND, "doctor", "--workdir", str(workdir), "--seconds", "12", *hosts]
            + ["--process-id", str(i), "--compilation-cache", "off"]
        )
    with started(tmp_path, commands, devices=1) as run:
        first, second = run.wait()
    assert (first.code, second.code) == (1, 1), first.text + second.text
    assert "workdir: write (process 1 on " in first.text
    assert "Not a directory" in first.text and "all 2 processes" in first.text
    assert "PASS  clocks" in first.text and "PASS" not in second.text


def test_the_time_is_three_minutes():
    assert command.SECONDS == 180
