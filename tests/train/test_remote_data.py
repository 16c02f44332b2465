"""Runs whose data is in a store that is slow, faulty, away for a time, and gone."""

import random
import signal
import time

import pytest
from data.samples import example
from stores import GOOGLE
from train.processes import (
    CONFIGS,
    ONE_LENGTH,
    metrics,
    numbers,
    saved_steps,
    steps_done,
    train,
    training,
)

from siglip2_jax.data.sources import Memory
from siglip2_jax.data.tools import pack as pack_module

pytest.importorskip(GOOGLE)
pytest.importorskip("obstore")
pytestmark = pytest.mark.slow

STEPS, KILLS = 60, 2
RUN = (*ONE_LENGTH, f"stages.main.steps={STEPS}", "data.workers=2")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A local pack of 200 examples in blocks of four."""
    path = tmp_path_factory.mktemp("data") / "packed"
    source = Memory(tuple(example(i) for i in range(200)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack_module, "BLOCK_SIZE", 4)
        pack_module.pack(source, path, kind="tar", shard_size=30)
    return path


@pytest.fixture(scope="module")
def local(tmp_path_factory, packed):
    """The run on it, without interruption."""
    workdir = tmp_path_factory.mktemp("local") / "run"
    (end,) = train(CONFIGS / "stored.py", workdir, *RUN, variables=[{"STORED_DATA": str(packed)}])
    assert end.code == 0, end.text
    return workdir


@pytest.fixture
def stored(cloud, packed):
    """The same in a store."""
    for path in packed.rglob("*.*"):
        if path.is_file():
            cloud.put(f"packed/{path.relative_to(packed)}", path.read_bytes())
    return {"STORED_DATA": f"{cloud.scheme}://bucket/packed"}


def learned(workdir) -> dict[int, dict[str, float]]:
    """The numbers of each step but those of requests."""
    return {
        step: {name: x for name, x in line.items() if not name.startswith("data/store_")}
        for step, line in numbers(workdir).items()
    }


def test_kills_and_faults_change_nothing(tmp_path, cloud, stored, local):
    """Killed at random moments, on a store with faults that is also away for seconds."""
    moments, faults = random.Random(5), random.Random(6)
    cloud.latency = 0.02
    cloud.fault = lambda: faults.choice([*[None] * 20, "503", "429", "reset", "cut"])
    workdir, options = tmp_path / "run", {"variables": [stored]}
    for _ in range(KILLS):
        done = steps_done(workdir)
        with training(CONFIGS / "stored.py", workdir, *RUN, **options) as run:
            run.wait_for(lambda done=done: steps_done(workdir) > done + 3)
            time.sleep(moments.uniform(0, 0.2))
            run.kill_all(signal.SIGKILL)
            run.wait()
    if cloud.scheme == "gs":  # moto would ask for its bucket again
        with training(CONFIGS / "stored.py", workdir, *RUN, **options) as run:
            run.wait_for(lambda: steps_done(workdir) > 15)
            cloud.shut()
            time.sleep(4)
            cloud.open()
            (end,) = run.wait()
    else:
        (end,) = train(CONFIGS / "stored.py", workdir, *RUN, **options)
    assert end.code == 0 and "Traceback" not in end.text, end.text
    found = learned(workdir)
    assert list(found) == list(range(1, STEPS + 1)) and found == learned(local)
    last = metrics(workdir)[-1]
    assert last["data/store_requests"] > last["data/store_retries"] > 0 == last["bad_examples"]
    assert "data/store_requests" not in metrics(local)[-1]


def test_a_store_that_is_gone_is_named_after_saving(tmp_path, cloud, stored):
    workdir = tmp_path / "run"
    changes = (*RUN[:1], "stages.main.steps=100000", "data.workers=1", "data.patience=2")
    changes += ("checkpoints.every=1000000",)
    with training(CONFIGS / "stored.py", workdir, *changes, variables=[stored]) as run:
        run.wait_for(lambda: steps_done(workdir) > 3)
        cloud.shut()
        (end,) = run.wait()
    assert end.code == 2 and "Traceback" not in end.text, end.text
    (sentence,) = (x for x in end.text.splitlines() if x.startswith("siglip2: error:"))
    assert f"{stored['STORED_DATA']}/examples-0000" in sentence and "tried " in sentence
    assert saved_steps(workdir) == [metrics(workdir)[-1]["step"]]
