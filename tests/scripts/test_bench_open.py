"""The benchmark of opening: a row for each kind of data, and the memory of training."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_open.py"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux counts memory")
def test_tables():
    sizes = ("--rows", "50", "--shards", "5", "--tars", "20", "--train")
    command = [sys.executable, str(SCRIPT), *sizes]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if " | " in line]
    rows = {name: numbers for name, *numbers in lines}
    counts = {"rows": "50", "shards": "20", "shards and counts": "20", "manifest": "200,000"}
    assert {name: rows[name][0] for name in counts} == counts
    assert rows["MB"] == ["1,000 examples", "200,000", "more"]
    # How much more is for the benchmark to say: peaks differ between machines.
    for process, least in (("training process", 200), ("worker process", 50)):
        few, many, more = map(int, rows[process])
        assert few > least and many > least and abs(many - few - more) <= 1
