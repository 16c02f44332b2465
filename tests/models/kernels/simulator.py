"""TPU interpret mode of Pallas, strict: what a chip would leave to chance is an error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu

STRICT = pltpu.InterpretParams(uninitialized_memory="nan", detect_races=True)
"""Memory holds NaN until it is written, reads outside of arrays raise, copies run beside the
program."""
TWO_CORES = pltpu.InterpretParams(
    uninitialized_memory="nan", detect_races=True, num_cores_or_threads=2
)
"""Likewise on two cores, which share what a grid declares as parallel."""


@contextmanager
def no_races() -> Iterator[None]:
    """Fails if any kernel that runs meanwhile has a race; JAX itself keeps the last one's alone."""
    states = []

    class Kept(interpret_pallas_call.RaceDetectionState):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            states.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpret_pallas_call, "RaceDetectionState", Kept)
        try:
            yield
        finally:
            pltpu.reset_tpu_interpret_mode_state()  # after an error the next kernel needs it
    assert states, "no kernel has run"
    if any(state.races_found for state in states):
        raise RuntimeError("RACE DETECTED")  # as newer releases of JAX do themselves
