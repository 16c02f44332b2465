"""The campaign of kills on a database, in short: nothing differs, is missing or doubled."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "campaigns" / "index_campaign.py"


@pytest.mark.slow
@pytest.mark.search
def test_kills_change_nothing(tmp_path):
    pytest.importorskip("lancedb")
    path = tmp_path / "figures.json"
    command = [sys.executable, str(SCRIPT), "--kills", "2", "--images", "300", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(path.read_text())
    assert figures["rows"] > 200 and len(figures["killed_at_rows"]) == 2
    wrong = ("missing", "too_many", "differing", "other_errors")
    assert [figures[name] for name in wrong] == [0] * 4
    assert figures["ends"].get("killed", 0) >= 2
