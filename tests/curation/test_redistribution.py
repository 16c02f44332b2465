"""Chosen examples arrive, each once and whole, however unevenly the devices hold them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.builders import patches

from siglip2_jax.curation.redistribution import deal, make_plan
from siglip2_jax.sharding import make_mesh, put_batch
from siglip2_jax.types import Batch

MESHES = [(1, 1), (1, 4), (1, 8), (2, 2)]
N, COUNT = 64, 32
DEAL = jax.jit(deal, static_argnames="at_once")


def make_batch(n: int = N) -> Batch:
    image = patches([(1 + i % 3, 1 + i % 2) for i in range(n)], 6)
    number = np.arange(n, dtype=np.int32)
    extra = {"number": number, "odd": number % 2 == 1, "weight": np.float32(number)[:, None, None]}
    return Batch(image, np.stack([number, -number], 1), extra)


def choices() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "random": rng.permutation(N)[:COUNT],
        "first devices": np.arange(COUNT)[::-1],
        "last devices": np.arange(N - COUNT, N),
        "even": np.arange(0, N, 2),
        "most of some": np.r_[3:16, 25:32, 45:53, 60:64],
    }


CHOICES = choices()


def on(shape: tuple[int, int], batch, indices: np.ndarray, **options):
    mesh = make_mesh(shape[0], jax.devices()[: shape[0] * shape[1]])
    with jax.set_mesh(mesh):
        split = put_batch(batch, mesh)
        dealt = DEAL(split, jnp.asarray(indices, jnp.int32), **options)
        assert all(
            x.sharding.is_equivalent_to(y.sharding, x.ndim)
            for x, y in zip(*map(jax.tree.leaves, (dealt, split)), strict=True)
        )
    return jax.tree.map(np.asarray, dealt)


def assert_holds(dealt, batch, order: np.ndarray) -> None:
    """All leaves are the rows `order` of the batch."""
    for found, given in zip(*map(jax.tree.leaves, (dealt, batch)), strict=True):
        assert found.dtype == given.dtype
        np.testing.assert_array_equal(found, given[order])


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_chosen_examples_arrive(shape):
    batch = make_batch()
    for name, indices in CHOICES.items():
        dealt = on(shape, batch, indices, at_once=3)
        order = dealt.fields["number"]
        np.testing.assert_array_equal(np.sort(order), np.sort(indices), err_msg=name)
        assert_holds(dealt, batch, order)


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_all_on_one_device(at_once):
    """Each device in turn has all that is chosen; however few travel at once, all arrive."""
    batch = {"number": np.arange(64)}
    for device in range(8):
        indices = np.arange(8 * device, 8 * device + 8)
        dealt = on((1, 8), batch, indices, at_once=at_once)["number"]
        np.testing.assert_array_equal(np.sort(dealt), indices)


def test_own_examples_stay():
    """A device's own chosen examples come first, up to its share, ordered by index."""
    indices = CHOICES["random"]
    dealt = on((1, 8), {"number": np.arange(N)}, indices)["number"].reshape(8, -1)
    for device, found in enumerate(dealt):
        own = np.sort(indices[indices // 8 == device])[: found.size]
        np.testing.assert_array_equal(found[: own.size], own)


def test_the_order_of_the_indices_is_irrelevant():
    batch, indices = {"number": np.arange(N)}, CHOICES["random"]
    found = [on((1, 4), batch, x)["number"] for x in (indices, indices[::-1])]
    np.testing.assert_array_equal(*found)


def test_everything_chosen_moves_nothing():
    batch = make_batch()
    assert_holds(on((1, 8), batch, np.arange(N)[::-1]), batch, np.arange(N))


def test_without_a_mesh():
    batch, indices = make_batch(), CHOICES["random"]
    dealt = deal(jax.tree.map(jnp.asarray, batch), jnp.asarray(indices))
    assert_holds(dealt, batch, np.sort(indices))


def test_ways_are_short():
    """Random choices do not travel far, let alone around the whole ring."""
    chosen = np.random.default_rng(0).permutation(256 * 64)[: 256 * 32]
    plan = make_plan(jnp.sort(jnp.asarray(chosen)), 256, 64)
    assert plan.surplus.sum() == plan.slots.sum() > 256
    assert 1 < plan.farthest() < 85, plan.farthest()


def test_memory():
    """A device holds its share and the few that travel, nothing as large as the super-batch."""
    mesh = make_mesh(1, jax.devices()[:8])
    n, width = 512, 4096
    with jax.set_mesh(mesh):
        batch = put_batch({"pixels": np.zeros((n, width), np.float32)}, mesh)
        compiled = DEAL.lower(batch, jnp.arange(n // 2), at_once=4).compile()
    memory = compiled.memory_analysis()
    share = n // 2 // 8 * width * 4
    assert memory.output_size_in_bytes >= share
    assert memory.temp_size_in_bytes < 2.5 * share, memory.temp_size_in_bytes / share
    assert "all-gather" not in compiled.as_text()


def test_bad_input():
    with pytest.raises(ValueError, match="cannot be dealt evenly to 8 devices"):
        on((1, 8), {"number": np.arange(64)}, np.arange(12))
    with pytest.raises(ValueError, match=r"hold \[3, 4\] examples"):
        deal({"a": jnp.zeros(3), "b": jnp.zeros(4)}, jnp.arange(2))
    with pytest.raises(ValueError, match="at_once is 0"):
        deal({"a": jnp.zeros(3)}, jnp.arange(2), at_once=0)
