"""Runs of a sweep: order, what is passed over and goes on, what is refused; with a stub runner."""

import json
from pathlib import Path

import pytest

from siglip2_jax.config import load_config, to_json
from siglip2_jax.recipes import locate
from siglip2_jax.sweep.arms import read_arms
from siglip2_jax.sweep.runs import Run, plan_runs, train_all

GRID = ["optim.peak_lr=3e-4,1e-3"]


def plan(workdir: Path, *settings: str, grids=GRID, seeds=2) -> list[Run]:
    return plan_runs("tiny", workdir, read_arms(grids), range(seeds), settings)


def save(run: Run, step: int) -> None:
    """Leaves what a finished checkpoint looks like from outside."""
    (Path(run.workdir) / "checkpoints" / str(step) / "params").mkdir(parents=True)


def begin(run: Run) -> None:
    """Leaves the config of a run, as training does."""
    assignments = run.arguments[run.arguments.index("--set") + 1 :: 2]
    Path(run.workdir).mkdir(parents=True, exist_ok=True)
    record = to_json(load_config(locate("tiny"), assignments)) | {"versions": {}, "origin": None}
    (Path(run.workdir) / "config.json").write_text(json.dumps(record))


def test_all_arms_of_a_seed_come_before_the_next_seed(tmp_path):
    runs = plan(tmp_path, "steps=30")
    assert [(run.arm, run.seed) for run in runs] == [
        ("peak_lr=3e-4", 0),
        ("peak_lr=1e-3", 0),
        ("peak_lr=3e-4", 1),
        ("peak_lr=1e-3", 1),
    ]
    assert runs[3].workdir == tmp_path / "peak_lr=1e-3" / "seed1" and runs[3].steps == 30
    assert " ".join(runs[3].arguments) == (
        f"train tiny --workdir {tmp_path}/peak_lr=1e-3/seed1 --compilation-cache "
        f"{tmp_path}/programs --set steps=30 --set optim.peak_lr=1e-3 --set seed=1"
    )
    assert not list(tmp_path.iterdir())


def test_finished_runs_are_passed_over_and_others_go_on(tmp_path):
    """A second call after a failure and a stop trains what is left, in the same order."""
    runs, trained, said = plan(tmp_path, "steps=30"), [], []
    codes = {runs[1].workdir: 2, runs[2].workdir: 143}
    save(runs[0], 30)
    save(runs[2], 20)

    def train(run: Run) -> int:
        trained.append(run)
        code = codes.pop(run.workdir, 0)
        if not code:
            save(run, 30)
        return code

    assert train_all(runs, said.append, train) == 143
    assert trained == runs[1:3]
    assert said == [
        "run 1 of 4: peak_lr=3e-4, seed 0 is finished",
        f"run 2 of 4: peak_lr=1e-3, seed 0 starts in {runs[1].workdir}",
        "run 2 of 4: peak_lr=1e-3, seed 0 failed with exit code 2",
        f"run 3 of 4: peak_lr=3e-4, seed 1 goes on from step 20 in {runs[2].workdir}",
    ]
    trained.clear()
    codes[runs[3].workdir] = 1
    assert train_all(runs, said.append, train) == 1 and trained == runs[1:]
    assert said[-1] == "1 of 4 runs failed: peak_lr=1e-3 seed 1"
    trained.clear()
    assert train_all(runs, said.append, train) == 0 and trained == runs[3:]
    assert all(run.is_finished for run in runs)


def test_a_run_that_was_begun_goes_on_with_the_same_config_only(tmp_path):
    runs = plan(tmp_path, "steps=30")
    begin(runs[2])
    assert plan(tmp_path, "steps=30") == runs
    with pytest.raises(ValueError) as error:
        plan(tmp_path, "steps=40")
    assert f"{runs[2].workdir} was made with stages.0.steps 30 (now 40)" in str(error.value)
    plan(tmp_path, "steps=40", seeds=1)  # which does not touch that run
    with pytest.raises(ValueError, match="is the workdir of a run; give the sweep a directory"):
        plan(Path(runs[2].workdir))


@pytest.mark.parametrize(
    ("settings", "grids", "message"),
    [
        ([], ["optim.peak_ler=1,2"], "did you mean 'peak_lr'"),
        (["stepps=3"], GRID, "'stepps' is not a field"),
        ([], ["optim.peak_lr=1,2", "steps=3,many"], "'steps=many': expected"),
        (["seed=2"], GRID, "'seed=2' sets the seed"),
        ([], ["seed=1,2"], "'seed=1' sets the seed"),
        ([], ["optim.peak_lr=1,1.0"], "'peak_lr=1' and 'peak_lr=1.0' make the same config"),
    ],
)
def test_mistakes_are_named_before_anything_runs(tmp_path, settings, grids, message):
    with pytest.raises(ValueError) as error:
        plan(tmp_path / "sweep", *settings, grids=grids)
    assert message in str(error.value) and not list(tmp_path.iterdir())
