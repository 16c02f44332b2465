"""The optimizer: big_vision's `optax.py`, on a flat dict of the parameters that learn."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from siglip2_jax.config.optim import Group, Optim
from siglip2_jax.train.adafactor import scale_by_adafactor
from siglip2_jax.train.schedule import Factor, factor

EVERYTHING, RESTING = Group(pattern=".*"), Group(pattern=".*", frozen=True)
Leaves = dict[str, Float[Array, "..."]]


class OptimState(NamedTuple):
    """The optimizer's state; its arrays are sharded like the parameters they belong to.

    Attributes:
      count: updates made in this stage, int32; the schedule reads it.
      moments: the state of optax's `scale_by_adam`, or of `adafactor.scale_by_adafactor`. They hold
        a count of their own, which a continued stage keeps.
    """

    count: Int[Array, ""]
    moments: Any


def begin_stage(state: OptimState) -> OptimState:
    """The state with which a stage continues another one's: its schedule starts anew.

    How far the schedule had come before is not the count's but `Schedule.begin`'s to say.
    """
    return state._replace(count=jnp.zeros_like(state.count))


def make_optimizer(optim: Optim, steps: int, paths: Sequence[str]) -> optax.GradientTransformation:
    """The optimizer of a stage.

    The update of a parameter is `-factor(count) * (lr * direction + decay * parameter)`: the
    gradients are clipped by their norm over all parameters together, Adam or Adafactor gives the
    direction, `lr` is `peak_lr` times the group's `lr_scale`, and `decay` is the weight decay where
    `optim.decay` matches and 0 elsewhere (see `siglip2_jax.config.Optim`).

    `init` and `update` take flat dicts with exactly the keys `trainable(optim, paths)`, and work
    under `jax.jit`, on sharded parameters too. Parameters and states are float32, except
    the momentum where `optim.momentum_dtype` says so.

    Args:
      optim: what to do.
      steps: number of steps of the stage, for its schedule.
      paths: the paths of the parameters, frozen ones included or not.

    Returns:
      A transformation whose state is an `OptimState`.

    Raises:
      ValueError: the schedule ends before its warm-up.
    """
    at = factor(optim.schedule, steps)
    rates = {path: optim.peak_lr * _group(optim, path).lr_scale for path in paths}
    decays = {path: _weight_decay(optim, path) for path in paths}
    clip = optax.clip_by_global_norm(optim.clip_norm) if optim.clip_norm else optax.identity()
    chain = optax.chain(clip, _direction(optim))

    def init(params: Leaves) -> OptimState:
        return OptimState(jnp.zeros((), jnp.int32), chain.init(params))

    def update(
        grads: Leaves, state: OptimState, params: Leaves | None = None
    ) -> tuple[Leaves, OptimState]:
        if params is None:
            raise ValueError("the optimizer's update needs the parameters, for weight decay")
        directions, moments = cast(tuple[Leaves, Any], chain.update(grads, state.moments, params))
        now = at(state.count)
        updates = {
            path: -now * (rates[path] * direction + decays[path] * params[path])
            for path, direction in directions.items()
        }
        return updates, OptimState(state.count + 1, moments)

    # Only flat dicts, where optax's types want any tree.
    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def learning_rate(optim: Optim, steps: int) -> Callable[..., Float[Array, ""]]:
    """The learning rate of a parameter whose `lr_scale` is 1, as a function of the stage's step."""
    at: Factor = factor(optim.schedule, steps)
    return lambda step: optim.peak_lr * at(step)


def trainable(
    optim: Optim, paths: Iterable[str], resting: Container[str] = frozenset()
) -> list[str]:
    """The paths of the parameters that are not frozen, in order.

    Args:
      optim: says which groups are frozen.
      paths: every parameter of the stage.
      resting: those of them that learn only where a group matches them.

    Raises:
      ValueError: a group matches no parameter, or all are frozen.
    """
    paths = list(paths)
    for group in optim.groups:
        if not any(re.fullmatch(group.pattern, path) for path in paths):
            raise ValueError(
                f"the optimizer's group {group.pattern!r} matches no parameter; patterns match "
                f"whole paths such as {paths[0]!r}"
            )
    usual = {path: RESTING if path in resting else EVERYTHING for path in paths}
    learning = [path for path in paths if not _group(optim, path, usual[path]).frozen]
    if not learning:
        raise ValueError("the optimizer's groups freeze every parameter; leave one to train")
    return learning


def _direction(optim: Optim) -> optax.GradientTransformation:
    """Transformation of gradients to the direction of the update."""
    if optim.kind == "adafactor":
        dtype = optim.momentum_dtype or "bfloat16"
        return scale_by_adafactor(momentum=optim.b1, max_decay=optim.b2, momentum_dtype=dtype)
    dtype = optim.momentum_dtype or "float32"
    return optax.scale_by_adam(b1=optim.b1, b2=optim.b2, eps=optim.eps, mu_dtype=dtype)


def _group(optim: Optim, path: str, otherwise: Group = EVERYTHING) -> Group:
    """The first group that matches; without one, parameters are treated as the optimizer says."""
    matching = (group for group in optim.groups if re.fullmatch(group.pattern, path))
    return next(matching, otherwise)


def _weight_decay(optim: Optim, path: str) -> float:
    if not re.fullmatch(optim.decay, path):
        return 0.0
    decay = _group(optim, path).weight_decay
    return optim.weight_decay if decay is None else decay
