"""Campaigns of kills and faults against training, in short.

Of the others, tests beside the code are the short form: hosts in `test_multihost.py`, data in
`test_lost_data.py` of tests/train and in tests/data/workers/test_pool.py.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGNS = Path(__file__).parents[2] / "scripts" / "campaigns"


def figures_of(tmp_path: Path, script: str, *arguments: str) -> dict:
    path = tmp_path / "figures.json"
    command = [sys.executable, str(CAMPAIGNS / script), *arguments, "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(path.read_text())


def may_mount() -> bool:
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return bool(shutil.which("unshare")) and not subprocess.run(command, stderr=-3).returncode


@pytest.mark.slow
def test_two_processes_are_killed_and_end_the_same(tmp_path):
    figures = figures_of(tmp_path, "train_campaign.py", "--kills", "0", "2")
    assert figures["2: kills"] == 2 and figures["2: runs"] == 1
    assert figures["2: steps of a run"] == 60 and figures["2: arrays"] > 100
    wrong = ("differing steps", "missing steps", "differing arrays", "leftovers")
    assert [figures[f"2: {name}"] for name in wrong] == [0] * 4


@pytest.mark.slow
def test_damaged_checkpoints_are_passed_by(tmp_path):
    figures = figures_of(tmp_path, "faults_campaign.py", "--part", "checkpoints", "--rounds", "6")
    outcomes = {name: x for name, x in figures.items() if name not in ("rounds", "seconds")}
    assert sum(outcomes.values()) == 6
    assert {name.partition(": ")[2] for name in outcomes} <= {"harmless", "named and passed by"}
    assert any(name.endswith("passed by") for name in outcomes)


@pytest.mark.slow
def test_a_disk_that_is_full_is_named_and_the_run_resumes(tmp_path):
    if not may_mount():
        pytest.skip("mounting needs a privilege that is not there")
    options = ("--part", "disk", "--rounds", "1", "--seed", "9")
    assert figures_of(tmp_path, "faults_campaign.py", *options)["full: resumed"] == 1
