"""Runs whose data cannot be read any more save, all at the same step, before they stop."""

import pytest
from train.processes import (
    CONFIGS,
    LIGHT,
    ONE_LENGTH,
    metrics,
    numbers,
    saved_steps,
    steps_done,
    train,
    training,
)

LOST = CONFIGS / "lost.py"
SENTENCE = "siglip2: error: gs://bucket/a.tar cannot be read: the store does not answer"


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_whose_data_is_lost_saves_and_goes_on_later(tmp_path, processes):
    workdir, gone = tmp_path / "run", tmp_path / "gone"
    # Of two processes, the second one alone loses its data.
    variables = [{"GONE": str(tmp_path / "never")}, {"GONE": str(gone)}][-processes:]
    options = {"processes": processes, "variables": variables}
    changes = (*ONE_LENGTH, "optim.schedule.warmup=1")
    with training(LOST, workdir, *changes, "stages.main.steps=100000", **options) as run:
        run.wait_for(lambda: steps_done(workdir) >= 3)
        gone.touch()
        ends = run.wait()
    assert [end.code for end in ends] == [2] * processes, ends
    assert SENTENCE in ends[-1].text and "Traceback" not in ends[-1].text, ends
    if processes == 2:
        assert "another process of the run cannot read its data" in ends[0].text
        assert "Traceback" not in ends[0].text
    last = metrics(workdir)[-1]["step"]
    assert saved_steps(workdir) == [last]
    for end in ends:
        assert f"the data cannot be read; the last good checkpoint is step {last} in" in end.text
    gone.unlink()
    few = f"stages.main.steps={last + 3}"
    ends = train(LOST, workdir, *changes, few, **options)
    assert all(end.code == 0 for end in ends), ends
    (end,) = train(LIGHT, tmp_path / "alone", *changes, few)
    found, expected = numbers(workdir), numbers(tmp_path / "alone")
    assert end.code == 0 and found.keys() == expected.keys()
    batches = [[line["digest/batch"] for line in run.values()] for run in (found, expected)]
    assert batches[0] == batches[1]  # each step's; the rest depends on the schedule's length
