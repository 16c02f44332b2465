"""Parts of the scripts that kill a command again and again."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SECONDS_TO_END = 20.0  # for the workers of a process that was killed


def environment() -> dict[str, str]:
    """The environment of a process on the CPU that finds this package."""
    place = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.getenv("PYTHONPATH"))))
    return {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": place}


def has_ended(group: int) -> bool:
    """True once no process of a group is left."""
    end = time.monotonic() + SECONDS_TO_END
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def report(figures: Mapping[str, Any], path: Path | None) -> None:
    """Prints figures as a table, and writes them as JSON to a path if there is one."""
    print("| | |\n|---|---|")
    for name, value in figures.items():
        print(f"| {name.replace('_', ' ')} | {value} |")
    if path:
        path.write_text(json.dumps(figures, indent=2))
