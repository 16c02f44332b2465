"""The benchmark of the block order: a row for each case, better with more blocks in windows."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_order.py"


@pytest.mark.slow
def test_table(tmp_path):
    path = tmp_path / "figures.json"
    command = [sys.executable, str(SCRIPT), "--steps", "3", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())
    lines = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(lines) == len(rows) + 1
    narrow, wide = (
        next(row for row in rows if (row["lanes"], row["window"]) == (256, window))
        for window in (4, 16)
    )
    assert 1.5 < narrow["pairs"] < 2.5 and 1.1 < wide["pairs"] < 1.4
    assert all(0.9 < row["pairs"] < 1.1 for row in rows if row["batch"] == 32_768)
