"""Chosen examples of a batch, dealt evenly to the devices.

Every device keeps up to its share of the chosen examples it holds. What is more than its share
travels around the ring of devices, a few examples at a time, to those that hold too few; nobody
ever holds the whole batch. The indices are known everywhere, so every device works out the whole
plan for itself and only examples travel.
"""

from __future__ import annotations

from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Int

from siglip2_jax.sharding import AXES, BATCH, has_mesh, ppermute_next
from siglip2_jax.types import pytree_dataclass

T = TypeVar("T")


def deal(batch: T, indices: Int[Array, " count"], *, at_once: int = 8) -> T:
    """The chosen examples of a batch, split over the mesh as the batch is.

    Args:
      batch: a pytree of arrays of n examples, split over the mesh as `BATCH`.
      indices: which `count` examples, in [0, n) and different; the same on every device.
      at_once: how many surplus examples of each device travel at a time: more are faster and take
        more memory.

    Returns:
      The same pytree with `count` examples, rows of all leaves aligned. Each device has its own
      chosen examples first, by index, then those that came from others; without a mesh all are
      ordered by index. The order depends on the indices and the number of devices alone.

    Raises:
      ValueError: leaves have different numbers of examples, the devices do not divide n or `count`,
        or `at_once` is less than 1.
    """
    if at_once < 1:
        raise ValueError(f"at_once is {at_once}, expected 1 example or more")
    sizes = sorted({x.shape[0] for x in jax.tree.leaves(batch)})
    if len(sizes) != 1:
        raise ValueError(f"leaves of the batch hold {sizes} examples, expected the same in all")
    order = jnp.sort(indices)
    if not has_mesh():
        return jax.tree.map(lambda x: x[order], batch)
    devices = jax.sharding.get_abstract_mesh().size
    if sizes[0] % devices or len(indices) % devices:
        raise ValueError(
            f"{len(indices)} of {sizes[0]} examples cannot be dealt evenly to {devices} devices; "
            f"choose two multiples of {devices}"
        )
    local = partial(_deal_local, at_once=min(at_once, sizes[0] // devices))
    return jax.shard_map(local, in_specs=(BATCH, PartitionSpec()), out_specs=BATCH)(batch, order)


@pytree_dataclass
class Plan:
    """Plan of which device gives chosen examples to which, one entry a device.

    Surplus examples are numbered along the ring, and so are open slots: surplus example q goes to
    open slot q. Both numberings begin where every example finds its slot further along the ring
    and none has to come round to where it began. For 32,768 of 65,536 examples on 256 devices,
    chosen at random, the longest way is then about 45 devices instead of 255.

    Attributes:
      first: where its chosen examples begin in the list of all of them, ordered by index.
      chosen: how many it holds.
      surplus: how many of them are more than its share.
      slots: how many are missing to its share.
      gives: number of its first surplus example.
      takes: number of its first open slot.
    """

    first: Int[Array, " D"]
    chosen: Int[Array, " D"]
    surplus: Int[Array, " D"]
    slots: Int[Array, " D"]
    gives: Int[Array, " D"]
    takes: Int[Array, " D"]

    def farthest(self) -> Int[Array, ""]:
        """The longest way of any surplus example, in devices."""
        meet = (self.gives[:, None] < self.takes + self.slots) & (
            self.takes < (self.gives + self.surplus)[:, None]
        )
        meet &= (self.surplus > 0)[:, None] & (self.slots > 0)
        device = jnp.arange(len(self.first))
        return jnp.where(meet, (device - device[:, None]) % len(device), 0).max()


def make_plan(order: Int[Array, " count"], devices: int, rows: int) -> Plan:
    """The plan for some chosen examples.

    Args:
      order: their indices, ascending.
      devices: D, how many there are.
      rows: how many examples of the batch each device holds.
    """
    share = len(order) // devices
    counts = jnp.zeros(devices, jnp.int32).at[order // rows].add(1)
    surplus, slots = jnp.maximum(counts - share, 0), jnp.maximum(share - counts, 0)
    first, gives, takes = (jnp.cumsum(x) - x for x in (counts, surplus, slots))
    # From where the balance is lowest on, there are never more slots than examples for them.
    begin = jnp.argmin(gives - takes)
    total = jnp.maximum(surplus.sum(), 1)
    gives, takes = ((x - x[begin]) % total for x in (gives, takes))
    return Plan(first, counts, surplus, slots, gives, takes)


def _deal_local(batch: T, order: Int[Array, " count"], *, at_once: int) -> T:
    devices, me = jax.lax.axis_size(AXES), jax.lax.axis_index(AXES)
    rows, share = jax.tree.leaves(batch)[0].shape[0], len(order) // devices
    plan = make_plan(order, devices, rows)

    def take(first: Array | int, size: int) -> T:
        """Some of the chosen examples of this device; after the last, values do not matter."""
        at = order.at[plan.first[me] + first + jnp.arange(size)].get(mode="clip") - me * rows
        return jax.tree.map(lambda x: x.at[jnp.clip(at, 0, rows - 1)].get(), batch)

    def send(round: Array, dealt: T) -> T:
        number = round * at_once + jnp.arange(at_once)

        def hop(step: Array, carry: tuple[T, T]) -> tuple[T, T]:
            dealt, travelling = carry
            travelling = jax.tree.map(ppermute_next, travelling)
            slot = _slot(plan, number, source=(me - step - 1) % devices, taker=me, none=share)
            dealt = jax.tree.map(lambda x, y: x.at[slot].set(y, mode="drop"), dealt, travelling)
            return dealt, travelling

        travelling = take(share + round * at_once, at_once)
        return jax.lax.fori_loop(0, plan.farthest(), hop, (dealt, travelling))[0]

    rounds = (plan.surplus.max() + at_once - 1) // at_once
    return jax.lax.fori_loop(0, rounds, send, take(0, share))


def _slot(plan: Plan, number: Array, source: Array, taker: Array, none: int) -> Array:
    """Positions at which a taker puts a source's surplus examples of some numbers, else `none`."""
    slot = plan.gives[source] + number - plan.takes[taker]
    mine: Bool[Array, " C"] = (slot >= 0) & (slot < plan.slots[taker])
    mine &= number < plan.surplus[source]
    return jnp.where(mine, plan.chosen[taker] + slot, none)
