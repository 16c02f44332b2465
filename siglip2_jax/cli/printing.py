"""Printing of any text: characters that a terminal cannot show are escaped."""

from __future__ import annotations

import io
import json
import sys
from typing import Any


def escape_unprintable() -> None:
    """Prints characters outside the terminal's encoding, and bytes that are not UTF-8, escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_json(value: Any) -> None:
    """Prints JSON, in ASCII where the terminal cannot show all of it."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2)  # the escapes of a terminal are not those of JSON
    print(text)
