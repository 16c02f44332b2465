"""Printing that no name and no script can stop: what a terminal does not know comes escaped."""

from __future__ import annotations

import io
import json
import sys
from typing import Any


def escape_unprintable() -> None:
    """Has what the terminal's encoding lacks, and bytes that are no UTF-8, printed as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_json(value: Any) -> None:
    """Prints JSON: as it reads best where all of it can be printed, else in ASCII."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2)  # the escapes of a terminal are not those of JSON
    print(text)
