"""Start of a stage: its programs, compiled or read from the cache, and its first step."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import jax

from siglip2_jax.compilation_cache import Compilations, place_in_use
from siglip2_jax.data.workers.machine import usable_cores
from siglip2_jax.progress import progress

log = logging.getLogger(__name__)


class StartUp:
    """Clock of a stage until its first step is done, and count of the programs until then."""

    def __init__(self) -> None:
        self._compilations = Compilations()
        self.restart()

    def restart(self) -> None:
        """Begins the next stage."""
        self._begun, self._before = time.monotonic(), self._compilations.counts()
        self._done = False

    def close(self) -> None:
        """Ends the counting of programs."""
        self._compilations.close()

    def compile(self, stage: str, lowered: Iterator[tuple[int, Any]], count: int) -> dict[int, Any]:
        """Compiles the steps of a stage, as many at once as there are cores.

        Args:
          stage: its name.
          lowered: token budgets, and their lowered steps, which are traced one by one.
          count: how many there are.

        Returns:
          The programs, by token budget.
        """
        begin, before, programs = time.monotonic(), self._compilations.counts(), {}
        with (
            progress(f"compiling stage {stage}") as show,
            ThreadPoolExecutor(min(count, usable_cores()) or 1) as pool,
        ):
            budgets = {pool.submit(step.compile): budget for budget, step in lowered}
            for future in as_completed(budgets):
                programs[budgets[future]] = future.result()
                show(len(programs), count)
        log.info(
            "stage %s: its step for %s patches is ready after %.1f s: %s",
            stage,
            ", ".join(map(str, sorted(programs))),
            time.monotonic() - begin,
            self._since(before),
        )
        return programs

    def step(self, stage: str, metrics: Any) -> None:
        """Waits for the first step of a stage, and says how long all until then has taken."""
        if not self._done:
            self._done = True
            jax.block_until_ready(metrics)
            seconds = time.monotonic() - self._begun
            log.info(
                "stage %s: first step after %.1f s: %s", stage, seconds, self._since(self._before)
            )

    def _since(self, before: tuple[int, int]) -> str:
        """Phrase on the programs since some counts."""
        compiled, read = (
            now - then for now, then in zip(self._compilations.counts(), before, strict=True)
        )
        place = place_in_use()
        return f"{compiled} programs compiled, " + (f"{read} from {place}" if place else "no cache")
