"""The campaign of kills over embedding processes, in short: no row differs, is lost or doubled."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "campaigns" / "embed_campaign.py"


@pytest.mark.slow
@pytest.mark.search
def test_kills_change_nothing(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "figures.json"
    command = [sys.executable, str(SCRIPT), "--kills", "2", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(path.read_text())
    assert figures["kills"] == 2 and figures["rows"] == figures["images"] > 600
    assert figures["broken"] > 10
    wrong = ("differing_rows", "files_left", "processes_left_behind")
    assert [figures[name] for name in wrong] == [0] * 3
