"""Number of batches that devices hold: each takes memory that the step could use."""

import weakref

import jax
import numpy as np
import pytest
from models.builders import patches

from siglip2_jax.config import load_config
from siglip2_jax.data.pipeline import HostBatch
from siglip2_jax.recipes import locate
from siglip2_jax.sharding import make_mesh, put_batch
from siglip2_jax.train import loop
from siglip2_jax.train.feed import BATCHES_WAITING, agreed
from siglip2_jax.types import Batch


class Placed:
    """Counts, whenever a batch is placed, those that are still there."""

    def __init__(self):
        self._batches: list[weakref.ref] = []
        self.others: list[int] = []

    def __call__(self, array: jax.Array) -> None:
        self.others.append(sum(batch() is not None for batch in self._batches))
        self._batches.append(weakref.ref(array))


@pytest.mark.slow
def test_beside_the_batch_of_the_step_that_runs_one_is_placed(tmp_path, monkeypatch):
    placed = Placed()

    def put(batch, mesh):
        made = put_batch(batch, mesh)
        placed(made.text)
        return made

    monkeypatch.setattr(loop, "put_batch", put)
    config = load_config(locate("tiny"), ("stages.0.steps=6", "stages.0.evals=()"))
    assert loop.train(config, tmp_path / "run")
    assert placed.others == [0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("processes", [1, 2])
def test_several_hosts_hold_one_more(processes, monkeypatch):
    """The next batch waits for word from all of them while the one after is placed."""
    placed = Placed()

    def batches():
        for _ in range(6):
            batch = jax.device_put(Batch(patches([(1, 1)], 1), np.zeros((1, 8), np.int32)))
            placed(batch.text)
            yield HostBatch(batch, step=0, budget=1, position=1, bad=0, problems=())

    mesh = make_mesh()
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    with jax.set_mesh(mesh):
        for batch in agreed(batches(), 6, mesh):
            assert batch.position == 1
            if processes == 2:  # `put_batch` is to see the one process that there is
                monkeypatch.setattr(jax, "process_count", lambda: 1)
    assert max(placed.others) == {1: 1, 2: BATCHES_WAITING}[processes]
