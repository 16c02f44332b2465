"""Alarms of objectives during a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from siglip2_jax.objectives.base import Objective

log = logging.getLogger(__name__)


class Alarms:
    """Tells when an objective's alarm begins and when it is over, once each."""

    def __init__(
        self,
        objectives: Mapping[str, Objective],
        note: Callable[[int, str, Mapping[str, Any]], None],
    ):
        """Starts with no alarm.

        Args:
          objectives: of a stage.
          note: takes the step, "alarm", and the objective with its sentence, "" when it is over.
        """
        self._objectives, self._note = objectives, note
        self._alarmed: set[str] = set()

    def look(self, step: int, values: Mapping[str, float]) -> None:
        """Looks at the numbers of one step."""
        for name, objective in self._objectives.items():
            report = {
                k.removeprefix(f"{name}/"): v for k, v in values.items() if k.startswith(f"{name}/")
            }
            text = " ".join(objective.alarms(report))
            if bool(text) == (name in self._alarmed):
                continue
            self._alarmed ^= {name}
            self._note(step, "alarm", {"objective": name, "text": text})
            if text:
                log.warning("step %d, %s: %s", step, name, text)
