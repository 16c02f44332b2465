"""The campaign of kills and faults, in short: nothing differs, is lost or doubled."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from stores import GOOGLE

SCRIPT = Path(__file__).parents[2] / "scripts" / "campaigns" / "input_campaign.py"


def test_lost_and_doubled_examples_are_counted():
    """80 steps are a whole epoch and the beginning of the next."""
    spec = importlib.util.spec_from_file_location("input_campaign", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    order, batch = script.order_of_run()
    each = batch // order.lanes
    found = {
        step: {
            f"ids/{row:02}": float(order.example(row // each, (step - 1) * each + row % each))
            for row in range(batch)
        }
        for step in range(1, 81)
    }
    good = {"whole_epochs": 1, "examples_an_epoch": 127 * 16, "lost": 0, "doubled": 0}
    assert script.epochs(found) == good
    found[1]["ids/00"] = found[1]["ids/31"]  # of the first epoch
    assert script.epochs(found) == good | {"lost": 1, "doubled": 1}


@pytest.mark.slow
@pytest.mark.remote
def test_kills_and_faults_change_nothing(tmp_path):
    for package in (GOOGLE, "obstore"):
        pytest.importorskip(package)
    path = tmp_path / "figures.json"
    command = [sys.executable, str(SCRIPT), "--kills", "3", "--steps", "100", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(path.read_text())
    assert figures["steps"] == 100 and len(figures["killed_after_steps"]) == 3
    assert figures["whole_epochs"] == 1 and figures["examples_an_epoch"] == 2045 // 16 * 16
    wrong = ("differing_steps", "lost", "doubled", "bad_examples", "processes_left_behind")
    assert [figures[name] for name in wrong] == [0] * 5
    assert figures["numbers_a_step"] > 32  # beside the examples' numbers, losses and the digest
    assert min(figures["requests"][name] for name in ("503", "429", "reset", "cut")) > 0
