"""Runs whose data is in a store that goes away: they wait for it, or save and say its name."""

import time

import pytest
from data.samples import example
from train.processes import (
    CONFIGS,
    metrics,
    numbers,
    saved_steps,
    steps_done,
    train,
    training,
)

from siglip2_jax.data.sources import Memory
from siglip2_jax.data.tools import pack as pack_module

STORED = CONFIGS / "stored.py"
PATTERN = "data.source.pattern=gs://bucket/packed"
SECONDS_AWAY = 5.0
pytestmark = pytest.mark.slow


@pytest.fixture
def packed(store, tmp_path, monkeypatch):
    """The local twin of a pack in the store, in small blocks, of which few are held ahead."""
    pytest.importorskip("obstore")
    monkeypatch.setattr(pack_module, "BLOCK_SIZE", 4)
    source = Memory(tuple(example(i) for i in range(600)))
    pack_module.pack(source, tmp_path / "packed", kind="tar", shard_size=150)
    for path in (tmp_path / "packed").rglob("*"):
        if path.is_file():
            store.put(f"packed/{path.relative_to(tmp_path / 'packed')}", path.read_bytes())
    return tmp_path / "packed"


def computed(workdir):
    """The numbers of each step that do not tell of the store."""
    steps = numbers(workdir)
    return {
        step: {name: x for name, x in line.items() if not name.startswith("data/")}
        for step, line in steps.items()
    }


def test_a_store_that_is_away_for_seconds_changes_nothing(store, packed, tmp_path):
    workdir, changes = tmp_path / "run", ("stages.main.steps=150",)
    with training(STORED, workdir, PATTERN, *changes, devices=1) as run:
        run.wait_for(lambda: steps_done(workdir) >= 3)
        store.shut()
        time.sleep(SECONDS_AWAY)
        before = steps_done(workdir)
        assert run.running() and before < 150, run.texts()
        store.open()
        (end,) = run.wait()
    assert end.code == 0 and "Traceback" not in end.text, end.text
    assert metrics(workdir)[-1]["data/store_retries"] > 0
    local = f"data.source.pattern={packed}"
    (end,) = train(STORED, tmp_path / "local", local, *changes, devices=1)
    assert end.code == 0, end.text
    assert computed(workdir) == computed(tmp_path / "local")


def test_a_store_that_is_gone_for_good_ends_the_run(store, packed, tmp_path):
    workdir = tmp_path / "run"
    changes = ("stages.main.steps=100000", "data.patience=3", "checkpoints.every=1000000")
    with training(STORED, workdir, PATTERN, *changes, devices=1) as run:
        run.wait_for(lambda: steps_done(workdir) >= 3)
        store.shut()
        (end,) = run.wait()
    last = metrics(workdir)[-1]["step"]
    assert end.code == 2 and "Traceback" not in end.text, end.text
    (sentence,) = (x for x in end.text.splitlines() if x.startswith("siglip2: error:"))
    assert "gs://bucket/packed/examples-0000" in sentence and "cannot be read: tried" in sentence
    assert f"the last good checkpoint is step {last} in {workdir}" in end.text
    assert saved_steps(workdir) == [last]
