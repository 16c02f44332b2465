"""The benchmark of the input pipeline: all ways on all sources, and parts that add up."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_input.py"
pytestmark = pytest.mark.slow


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_every_way_and_source(tmp_path):
    path = tmp_path / "figures.json"
    done = run("--count", 3, "--repeats", 2, "--size", "200x150", "--budget", 16, "--json", path)
    assert done.returncode == 0, done.stderr
    assert "16 JPEGs of 200x150" in done.stdout and "| 64 px, hf, scaled decode |" in done.stdout
    figures = json.loads(path.read_text())
    assert len(figures["ways"]) == 9 and figures["size"] == [200, 150]
    for row in figures["ways"]:
        assert row["images_per_s"].keys() == {"folder", "tar", "ArrayRecord"}
        assert all(len(x) == 2 and min(x) > 0 for x in row["images_per_s"].values())
        idle = {part for part, spent in row["ms"].items() if not spent}
        assert ("views" in idle) != row["way"].endswith("views")
        assert not idle & {"decode", "resize", "patchify", "tokenise"}


def test_what_is_wrong_is_said(tmp_path):
    for arguments, message in (
        (("--size", "1024"), "write it as 1024x768"),
        (("--photos", tmp_path), "holds no .jpg"),
    ):
        done = run(*arguments)
        assert done.returncode and message in done.stderr
