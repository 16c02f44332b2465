"""The campaign of faults on disks, in short.

Of the other campaigns, tests beside the code are the short form: kills in `test_resume.py` and
`test_everything.py` of tests/train, damage in `test_damage.py`, hosts in `test_multihost.py`, data
in `test_lost_data.py` and in tests/data/workers/test_pool.py.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "campaigns" / "faults_campaign.py"


def may_mount() -> bool:
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return bool(shutil.which("unshare")) and not subprocess.run(command, stderr=-3).returncode


@pytest.mark.slow
def test_a_disk_that_is_full_is_named_and_the_run_resumes(tmp_path):
    if not may_mount():
        pytest.skip("mounting needs a privilege that is not there")
    path = tmp_path / "figures.json"
    command = [sys.executable, str(SCRIPT), "--part", "disk", "--rounds", "1", "--seed", "9"]
    done = subprocess.run([*command, "--json", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(path.read_text())
    assert figures["full: resumed"] == 1, figures
