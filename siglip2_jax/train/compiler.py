"""Compilation of steps, in runs and in plans: the options of XLA that help on each platform."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from siglip2_jax.sharding import platform

OPTIONS: dict[str, dict[str, str]] = {
    "tpu": {},
    "gpu": {},
    "cpu": {},
}


def jit_step(step: Callable[..., Any]) -> Any:
    """A step as a program for the mesh in force, in which the new state takes the old one's place.

    Args:
      step: takes a state, which is given up, and a batch.
    """
    return jax.jit(step, donate_argnums=0, compiler_options=OPTIONS[platform()] or None)
