"""Plans of many steps: what is compiled, what comes from results, and what is kept."""

import dataclasses

import pytest
from planner.plans import step_plan

from siglip2_jax.config import Origin
from siglip2_jax.planner import many
from siglip2_jax.planner.estimate import DoesNotFit
from siglip2_jax.planner.hlo.kernels import Kernel
from siglip2_jax.planner.hlo.walk import Operation
from siglip2_jax.planner.many import Job, plan_all
from siglip2_jax.planner.results import Results

TINY = Origin("siglip2_jax.recipes.tiny:config")
SHORT, LONG = (Job(TINY, "main", budget, "v5e:2x2", 1) for budget in (32, 64))


@pytest.mark.parametrize(
    ("cores", "free", "loops", "processes"),
    [
        (8, 15 << 30, True, 2),
        (8, 23 << 30, False, 1),
        (8, 25 << 30, False, 2),
        (2, 99 << 30, True, 2),
        (8, 1, True, 1),
        (3, None, True, 3),
    ],
)
def test_processes_that_a_machine_has_room_for(monkeypatch, cores, free, loops, processes):
    """One unrolled step among loops counts for all: it may be there at any time."""
    monkeypatch.setattr(many, "usable_cores", lambda: cores)
    monkeypatch.setattr(many, "free_memory", lambda: free)
    scan = f"compute.scan={loops}"
    other = dataclasses.replace(SHORT, origin=Origin(TINY.source, (scan,)))
    assert many._processes([SHORT, other]) == processes


@pytest.fixture
def planned(monkeypatch):
    """Keys by budget in place of configs, and the budgets that were compiled, in order."""
    answers = {SHORT: step_plan(), LONG: DoesNotFit("stage 'main' at 64 patches does not fit")}
    budgets = []

    def compile_all(work, jobs, at_once):
        for job in reversed(jobs):
            budgets.append(job.budget)
            yield job, answers[job]

    monkeypatch.setattr(many, "_key", lambda job: f"step-{job.budget}")
    monkeypatch.setattr(many, "in_processes", compile_all)
    return answers, budgets


def test_only_what_is_new_is_compiled(tmp_path, planned):
    answers, budgets = planned
    results = Results(tmp_path)
    assert dict(plan_all([SHORT], results)) == {SHORT: answers[SHORT]}
    assert [job for job, _ in plan_all([LONG, SHORT], results)] == [SHORT, LONG]
    again = dict(plan_all([SHORT, LONG], results))
    assert budgets == [32, 64]
    assert again[SHORT] == answers[SHORT] and str(again[LONG]) == str(answers[LONG])


@pytest.mark.parametrize(("timed_by", "compilations"), [("bundles", 1), ("cost estimate", 2)])
def test_a_plan_whose_kernels_were_not_timed_is_not_kept(tmp_path, planned, timed_by, compilations):
    answers, budgets = planned
    op = Operation("x", "custom-call", "", "", 1, 0, 0, {}, 1, timed_by, Kernel("{}", (), ()))
    answers[SHORT] = dataclasses.replace(step_plan(), operations=(op,))
    for _ in range(2):
        list(plan_all([SHORT], Results(tmp_path)))
    assert len(budgets) == compilations


@pytest.mark.tpu
def test_keys_of_jobs(tmp_path):
    pytest.importorskip("libtpu")
    changed = Origin(TINY.source, ("stages.main.optim.peak_lr=0.5",))
    jobs = [SHORT, LONG, dataclasses.replace(SHORT, origin=changed)]
    jobs.append(dataclasses.replace(SHORT, topology="v5e:1x1"))
    jobs.append(dataclasses.replace(SHORT, topology="v6e:2x2"))
    keys = [many._key(job) for job in jobs]
    assert len(set(keys)) == 5 and many._key(SHORT) == keys[0]
    file = tmp_path / "without_a_digest.py"
    file.write_text(
        "import dataclasses\nfrom siglip2_jax.recipes import tiny\ndef config():\n"
        "    run = tiny.config()\n    data = run.stages[0].data\n"
        "    data = dataclasses.replace(data, transforms=(lambda example: example,))\n"
        "    stage = dataclasses.replace(run.stages[0], data=data)\n"
        "    return dataclasses.replace(run, stages=(stage,))\n"
    )
    assert many._key(dataclasses.replace(SHORT, origin=Origin(str(file)))) is None
