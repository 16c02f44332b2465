"""The table of targets, with plans that are made up."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import pytest
from planner.plans import step_plan

from siglip2_jax.planner.estimate import DoesNotFit
from siglip2_jax.train.chips import V5E

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_tpu.py"


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("bench_tpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_tpu", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "topology_mesh", lambda name, slices, replica: None)
    monkeypatch.setattr(module, "version", lambda name: f"{name} 1")
    return module


def run(script, monkeypatch, plan, *arguments):
    monkeypatch.setattr(sys, "argv", ["bench_tpu.py", *map(str, arguments)])
    monkeypatch.setattr(script, "plan_step", plan)
    return script.main()


def test_every_program_is_planned_with_its_settings(script, monkeypatch, capsys, tmp_path):
    seen = []

    def plan(stage, budget, mesh, batch_size, results):
        seen.append((stage, budget, batch_size))
        flops = 0.6 * 0.12 * V5E.flops  # in 0.12 s
        made = step_plan(2**31, 0.12, batch_size)
        return dataclasses.replace(made, flops=int(flops), model_flops=flops)

    path = tmp_path / "figures.json"
    assert run(script, monkeypatch, plan, "--json", path) == 0
    assert len(seen) == len(script.POINTS)
    least = seen[1][0]
    assert least.compute.scan and least.compute.remat == "full"
    assert least.objectives["sigmoid"].implementation == "ring"
    own = {(128, 32_768), (1024, 16_384), (256, 512), (256, 4096)}  # of the mix and small runs
    assert {(budget, batch) for _, budget, batch in seen} >= {(1024, 8192), (256, 262_144)} | own
    assert {stage.name for stage, *_ in seen} >= {"main", "distill", "naflex"}
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == "mean MFU of B/16 NaFlex, the mix: 0.600, target >= 0.58"
    lines = [x for x in printed if x.startswith("|")]
    assert len(lines) == 2 + len(seen)
    assert all(
        x.endswith("| yes |") and "**120**" in x and "| 0.600 |" in x and "| 2.00 |" in x
        for x in lines[2:]
    )
    figures = json.loads(path.read_text())
    assert figures["versions"] == {"jax": "jax 1", "libtpu": "libtpu 1"}
    assert [row["missed"] for row in figures["programs"]] == [[]] * len(seen)
    assert list(tmp_path.iterdir()) == [path]


def test_missed_targets_are_named(script, monkeypatch, capsys):
    slow = lambda *_: dataclasses.replace(step_plan(12 * 2**30, 1.5), flops=2)  # noqa: E731
    assert run(script, monkeypatch, slow, "--only", "least memory") == 1
    assert capsys.readouterr().out.splitlines()[-1].endswith("| no: ms, GiB |")
    assert run(script, monkeypatch, slow, "--only", "B/16 NaFlex") == 1
    found = capsys.readouterr().out
    assert "| no: ms, FLOPs |" in found and "| MFU >= 0.5 | no: MFU |" in found
    assert found.splitlines()[-1] == "mean MFU of B/16 NaFlex, the mix: 0.000, target >= 0.58"


def test_what_does_not_fit(script, monkeypatch, capsys):
    def plan(*_):
        raise DoesNotFit("no")

    assert run(script, monkeypatch, plan, "--only", "L/16") == 1
    assert capsys.readouterr().out.splitlines()[-1].endswith("| no: does not fit |")


def test_nothing_of_that_name(script, monkeypatch, capsys):
    assert run(script, monkeypatch, None, "--only", "H/14") == 2
    assert "no program has 'H/14'" in capsys.readouterr().err
