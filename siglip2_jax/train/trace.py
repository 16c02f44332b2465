"""A profiler's trace of a window of steps."""

from __future__ import annotations

import os
from typing import Any

import jax

from siglip2_jax.config import Profile

FOLDER = "profile"


class Trace:
    """Profiles a range of steps; after a resume, the remainder of the range."""

    def __init__(self, profile: Profile | None, workdir: str | os.PathLike[str]):
        """Sets the steps to trace; None traces nothing.

        Args:
          profile: the window.
          workdir: where a folder `profile` is made, for `xprof`.
        """
        self._window = range(0)
        if profile is not None:
            self._window = range(profile.start, profile.start + profile.steps)
        self._directory = os.path.join(os.fspath(workdir), FOLDER)
        self._on = False

    def before(self, step: int, state: Any) -> None:
        """Starts or stops the profiler where the window begins or ends.

        Args:
          step: number within the run of the step that comes next.
          state: what that step starts from; the window ends when it is there.
        """
        if step in self._window and not self._on:
            jax.profiler.start_trace(self._directory)
            self._on = True
        elif step not in self._window and self._on:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Writes the trace, if one is being made."""
        if self._on:
            jax.profiler.stop_trace()
            self._on = False
