"""Checkpoints come back bit by bit on any mesh; which are kept; what does not fit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train.runs import SMALL, Sevens, numbers, run, save_run, stage

from siglip2_jax.config import Checkpoints, Optim
from siglip2_jax.sharding import make_mesh
from siglip2_jax.train.checkpoint import RunCheckpoints, by_path
from siglip2_jax.train.start import abstract_state
from siglip2_jax.train.state import TrainState

CONFIG = run(stage())


def mesh_of(shape):
    return make_mesh(shape[0], jax.devices()[: shape[0] * shape[1]])


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def saved(workdir):
    """States that were saved on four devices."""
    return save_run(workdir, CONFIG, [4, 10], mesh_of((1, 4)))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1), (2, 2)], ids=str)
def test_restored_on_any_mesh(workdir, saved, shape):
    like = abstract_state(Sevens(CONFIG.resolved[0]), mesh_of(shape))
    checkpoints = RunCheckpoints(workdir)
    found, wanted = checkpoints.restore(10, like), numbers(saved[10])
    checkpoints.close()
    assert jax.tree.structure(found) == jax.tree.structure(saved[10])
    for path, x in by_path(found).items():
        np.testing.assert_array_equal(x, wanted[path], err_msg=path)
        assert x.dtype == wanted[path].dtype
        assert x.sharding == by_path(like)[path].sharding, path


def test_what_there_is(workdir, saved):
    checkpoints = RunCheckpoints(workdir)
    assert (checkpoints.steps, checkpoints.latest) == ([4, 10], 10)
    record = checkpoints.record(4)
    assert record["stage"] == "main" and record["stages"] == [["main", 0, 10]]
    shapes = checkpoints.shapes(4, "params")
    assert {path: x.shape for path, x in shapes.items()} == {
        path: x.shape for path, x in Sevens(CONFIG.resolved[0]).shapes.items()
    }
    assert checkpoints.shapes(4, "nothing") == {}
    checkpoints.close()


def test_some_leaves(workdir, saved):
    """Reads leaves of one tree, without the others."""
    mesh, path = mesh_of((1, 4)), "text/head/kernel"
    like = {path: by_path(abstract_state(Sevens(CONFIG.resolved[0]), mesh).params)[path]}
    checkpoints = RunCheckpoints(workdir)
    trees = {"params": saved[10].params, "average": saved[10].ema_params}
    for tree, expected in trees.items():
        found = checkpoints.read(10, tree, like)
        assert found.keys() == like.keys()
        np.testing.assert_array_equal(found[path], numbers(expected)[path])
    checkpoints.close()


def wider(config, **vision):
    model = dataclasses.replace(SMALL, vision=dataclasses.replace(SMALL.vision, **vision))
    return dataclasses.replace(config, model=model)


@pytest.mark.parametrize(
    "other, message",
    [
        (wider(CONFIG, grid=8), r"holds \(16, 16, 24\) for params/vision/pos/table where.*\(8, 8"),
        (run(stage(optim=Optim(ema=0.9, kind="adafactor"))), "holds nothing for optimizer/moments"),
    ],
    ids=["sizes", "optimizer"],
)
def test_what_does_not_fit(workdir, saved, other, message):
    mesh = mesh_of((1, 4))
    checkpoints = RunCheckpoints(workdir)
    with pytest.raises(ValueError, match=message):
        checkpoints.restore(10, abstract_state(Sevens(other.resolved[0]), mesh))
    checkpoints.close()


@pytest.mark.slow
def test_no_average(tmp_path):
    plain = run(stage(optim=Optim()))
    mesh = mesh_of((1, 4))
    states = save_run(tmp_path, plain, [3], mesh)
    checkpoints = RunCheckpoints(tmp_path)
    assert states[3].ema_params is None
    assert (
        checkpoints.restore(3, abstract_state(Sevens(plain.resolved[0]), mesh)).ema_params is None
    )
    with pytest.raises(ValueError, match="holds nothing for average/b where"):
        checkpoints.restore(3, abstract_state(Sevens(CONFIG.resolved[0]), mesh))
    checkpoints.close()


def test_what_is_kept(tmp_path):
    """The last two, every fourth, and what a stage needs; opening to read removes nothing."""
    state = TrainState({"t": jnp.float32(1)}, {"count": jnp.int32(0)}, None, jnp.int32(0))
    settings = Checkpoints(every=1, keep_last=2, keep_every=4)
    checkpoints = RunCheckpoints(tmp_path, settings, keep={3})
    assert checkpoints.latest is None
    for step in range(1, 8):
        checkpoints.save(state, step, {"step": step})
    checkpoints.close()
    (tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp").mkdir()
    reader = RunCheckpoints(tmp_path)
    assert reader.steps == [3, 4, 6, 7]
    assert reader.record(6)["step"] == 6
    reader.close()
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"3", "4", "6", "7", "9.orbax-checkpoint-tmp"}
