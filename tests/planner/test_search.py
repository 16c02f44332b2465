"""The search with plans made up; nothing is compiled."""

import dataclasses
import json

import pytest
from planner.plans import step_plan

from siglip2_jax.cli import main
from siglip2_jax.planner.estimate import DoesNotFit
from siglip2_jax.planner.search import (
    ACTIVATIONS,
    REMATS,
    Candidate,
    Trial,
    candidates,
    pareto,
    remat_of,
    search,
    with_compute,
)
from siglip2_jax.recipes import tiny

GIB = 2**30
OUT_OF_MEMORY = DoesNotFit("stage 'main' does not fit")


def trial(seconds, gib, batch_size=32, remat="none"):
    plan = step_plan(int(gib * GIB), seconds, batch_size)
    return Trial(Candidate(batch_size, True, remat), plan)


def test_the_front_is_what_nothing_beats():
    fast, middle, small = trial(1, 9), trial(2, 5), trial(3, 2)
    beaten = [trial(2.5, 6), trial(2, 5.5), trial(1, 10), trial(4, 2)]
    failed = [trial(0.1, 17), Trial(Candidate(32, False, "none"), None)]
    assert pareto([*beaten, small, *failed, fast, middle]) == [fast, middle, small]
    assert pareto(failed) == []
    twin = trial(1, 9, remat="dots")
    assert pareto([fast, twin]) == [fast, twin]


def test_batches_are_compared_by_the_example():
    small, large = trial(1, 2, 32), trial(1.5, 4, 64)
    assert pareto([small, large]) == [large, small]
    assert large.example_seconds == 1.5 / 64


def test_candidates_are_all_combinations():
    found = candidates([32, 64])
    assert len(found) == len(set(found)) == 2 * 2 * len(REMATS)
    assert {candidate.batch_size for candidate in found} == {32, 64}
    assert candidates([8, 8], (False,), ("full",)) == [Candidate(8, False, "full")]
    assert all(set(remat) <= set(ACTIVATIONS) for remat in REMATS if isinstance(remat, tuple))
    assert all(remat_of(candidate.saved) == candidate.remat for candidate in found)
    assert remat_of(Candidate(8, False, 0.25).saved) == 0.25


@pytest.mark.parametrize("text", ["", "nothing", "qkv+", "dots+qkv"])
def test_unknown_remat(text):
    expected = "expected none, full, dots, a share of the blocks, or some of qkv, attn_out"
    with pytest.raises(ValueError, match=expected):
        remat_of(text)


def test_only_the_layers_of_the_stage_change():
    (before,) = tiny.config().resolved
    after = with_compute(before, Candidate(32, False, ("qkv", "x_mid")))
    assert (after.compute.scan, after.compute.remat) == (False, ("qkv", "x_mid"))
    assert after.compute.dtype == before.compute.dtype
    assert dataclasses.replace(after, compute=before.compute) == before


def test_programs_without_room_are_trials_and_other_errors_are_raised():
    (stage,) = tiny.config().resolved
    tried = candidates([32], (True,), ("none", "full"))

    def plan(changed, batch_size):
        if changed.compute.remat == "none":
            raise OUT_OF_MEMORY
        return step_plan(batch_size=batch_size)

    first, second = search(stage, tried, plan)
    assert first.plan is None and not first.fits and first.to_json()["plan"] is None
    assert second.fits and second.plan.batch_size == 32

    def broken(changed, batch_size):
        raise RuntimeError("INTERNAL: no")

    with pytest.raises(RuntimeError, match="INTERNAL"):
        next(search(stage, tried, broken))


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `siglip2 plan --search`; the third program does not compile, of later ones none."""
    pytest.importorskip("libtpu", reason="needs the extra `tpu`")
    done = []

    def pretend(stage, budget, mesh, batch_size, results):
        done.append(stage.compute)
        if len(done) == 3:
            raise OUT_OF_MEMORY
        if len(done) == 5:
            raise KeyboardInterrupt
        return step_plan(len(done) * 5 * GIB, 1 / len(done), batch_size)

    def run(*args):
        code = main(["plan", "tiny", "--topology", "v5e:2x2", "--search", *args])
        return code, *capsys.readouterr()

    monkeypatch.setattr("siglip2_jax.planner.plan.plan_step", pretend)
    return run


@pytest.mark.tpu
def test_an_interrupted_search_shows_what_it_has(command):
    code, out, err = command("--budget", "64", "--batches", "32,64")
    assert code == 130
    title, _, *rows, note, calibration = out.splitlines()
    assert calibration.startswith("(published / estimate: ")
    assert title.startswith("stage main, 64 patches on v5e:2x2 (4 chips), stopped after 4 of 28")
    assert [row[0] for row in rows] == ["*", "*", " ", " "]
    assert "DOES NOT FIT" in rows[2] and "DOES NOT COMPILE" in rows[3]
    assert all(row[2:] in err for row in rows) and note.startswith("* nothing else")


@pytest.mark.tpu
def test_a_search_for_machines(command):
    options = ["--scan", "unrolled", "--remats", "full,qkv+x_mid", "--json"]
    code, out, _ = command("--budget", "64", *options)
    found = json.loads(out)
    assert code == 0 and not found["stopped"] and found["budget"] == 64
    assert [trial["remat"] for trial in found["trials"]] == ["full", ["qkv", "x_mid"]]
    assert all(trial["pareto"] and not trial["scan"] for trial in found["trials"])
    assert found["trials"][0]["batch_size"] == found["trials"][0]["plan"]["batch_size"] == 32


@pytest.mark.tpu
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--search plans one program and 2 are selected; add --stage and --budget"),
        (["--budget", "64", "--batches", "32,30"], "multiples of 4"),
        (["--budget", "64", "--batches", "x"], "multiples of 4"),
        (["--budget", "64", "--remats", "all"], "expected none, full, dots"),
        (["--budget", "64", "--remats", "2.5"], "a share of the blocks from 0 to 1"),
        (["--budget", "64", "--largest-batch"], "leave --largest-batch out"),
    ],
)
def test_bad_options(command, options, message):
    code, _, err = command(*options)
    assert code == 2 and message in err and len(err.splitlines()) == 1
