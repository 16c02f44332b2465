"""Short runs of the scripts that load a server, and that bring it requests nobody should send."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
odd_requests = pytest.importorskip("odd_requests")

pytestmark = [pytest.mark.serve, pytest.mark.slow]

SCRIPTS = Path(__file__).parents[2] / "scripts"


def run(script: str, path: Path, *options: str) -> dict:
    """Result that a script writes; it must succeed."""
    command = [sys.executable, str(SCRIPTS / script), *options, "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(path.read_text())


def test_odd_requests_do_no_harm(tmp_path):
    summary = run(
        "campaigns/fuzz_serve.py", tmp_path / "fuzz.json", "--requests", "400", "--seed", "7"
    )
    assert (summary["faults"], summary["wrong"], summary["alive"]) == ({}, [], True)
    assert summary["tracebacks"] == 0
    assert summary["requests"] == 400
    statuses = Counter(summary["statuses"])
    assert statuses["200"] > 40 and statuses["400"] > 100 and statuses["left"] > 5


def test_load_loses_nothing(tmp_path):
    options = ["--seconds", "2", "--clients", "8"]
    result = run("bench_serve.py", tmp_path / "bench.json", *options)
    assert result["wrong"] == {}
    assert result["batching"]["texts_times"] > 1
    assert result["load"]["requests"] > 20
    assert {"damaged image", "classify", "text"} <= result["load"]["ms"].keys()
    assert all(0 <= x["rows"] < 1 for x in result["load"]["padding"].values())
    assert (result["end"]["lost"], result["end"]["exit_code"]) == (0, 0)
    assert result["end"]["sent"] > 10
