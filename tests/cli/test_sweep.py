"""`siglip2 sweep`: commands for a cluster, refusals, a real sweep that is stopped and goes on."""

import json
import shlex
import signal
from pathlib import Path

import pytest
from train.processes import COMMAND, saved_steps, started, steps_done
from xla import environment

CONFIG = str(Path(__file__).parents[1] / "train" / "configs" / "light.py")
SWEEP = (CONFIG, "--grid", "optim.peak_lr=1e-3,2e-3", "--set", "lengths.budgets=(16,)")


def test_prints_commands_of_runs_that_are_not_finished(siglip2, tmp_path):
    place = tmp_path / "peak_lr=1e-3" / "seed0" / "checkpoints"
    (place / "60" / "params").mkdir(parents=True)
    result = siglip2("sweep", *SWEEP, "--seeds", 2, "--workdir", tmp_path, "--print")
    assert result.code == 0, result.err
    commands = [shlex.split(line) for line in result.out.splitlines()]
    assert [Path(command[4]).relative_to(tmp_path).as_posix() for command in commands] == [
        "peak_lr=2e-3/seed0",
        "peak_lr=1e-3/seed1",
        "peak_lr=2e-3/seed1",
    ]
    assert commands[0][:4] == ["siglip2", "train", CONFIG, "--workdir"]
    assert commands[0][-5:] == ["lengths.budgets=(16,)", "--set", "optim.peak_lr=2e-3"] + [
        "--set",
        "seed=0",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--grid", "optim.peak_ler=1,2"), "did you mean 'peak_lr'"),
        (("--grid", "steps=3,3"), "gives the value '3' twice"),
        (("--arm", "steps=3"), "--arm 'steps=3' has no name"),
    ],
)
def test_mistakes_are_one_sentence(siglip2, tmp_path, options, message):
    result = siglip2("sweep", CONFIG, *options, "--workdir", tmp_path / "sweep")
    assert result.code == 2 and message in result.err and len(result.err.splitlines()) == 1
    assert not (tmp_path / "sweep").exists()


@pytest.mark.slow
def test_a_sweep_is_stopped_and_goes_on(siglip2, tmp_path, monkeypatch):
    """SIGTERM to the sweep saves the run that is under way; the same command ends it all."""
    place = tmp_path / "sweep"
    args = ["sweep", *SWEEP, "--workdir", str(place), "--set", "stages.main.steps=100"]
    args += ["--set", "checkpoints.every=100"]
    first, second = (place / f"peak_lr={rate}" / "seed0" for rate in ("1e-3", "2e-3"))
    with started(tmp_path, [["-c", COMMAND, *args]], devices=1) as sweep:
        sweep.wait_for(lambda: steps_done(first) > 3)
        sweep.kill(signal.SIGTERM)
        (end,) = sweep.wait()
    assert end.code == 143 and "run 1 of 2: peak_lr=1e-3, seed 0 starts in" in end.text, end.text
    stopped = saved_steps(first)[-1]
    assert 0 < stopped < 100 and not second.exists()

    for name, value in environment(devices=1).items():
        monkeypatch.setenv(name, value)
    result = siglip2(*args)
    assert result.code == 0 and "| loss | peak_lr=2e-3 | 1 | " in result.out
    assert f"run 1 of 2: peak_lr=1e-3, seed 0 goes on from step {stopped} in" in result.err
    assert saved_steps(first)[-1] == saved_steps(second)[-1] == 100
    result = siglip2(*args, "--json")
    assert result.err.count("is finished") == 2 and result.code == 0
    cells = {(row["metric"], row["arm"]): row for row in json.loads(result.out)["table"]}
    losses = [json.loads(x)["loss"] for x in (second / "metrics.jsonl").read_text().splitlines()]
    cell = cells["loss", "peak_lr=2e-3"]
    assert len(losses) == 100 and cell["last"]["mean"] == losses[-1]
    assert cell["best"]["mean"] == min(losses)
    other = cells["loss", "peak_lr=1e-3"]["last"]["mean"]
    assert cell["last"]["difference"]["mean"] == pytest.approx(losses[-1] - other, abs=1e-12)
    table = siglip2(*args, "--table")
    assert table.err == "" and table.out.startswith("| metric | arm | seeds | last | last - ")
