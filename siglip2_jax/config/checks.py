"""Checks that the configuration's dataclasses share; each failure is one sentence."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any


def at_least(config: Any, minimum: int | float, *names: str) -> None:
    """Raises ValueError where a field is below `minimum`; None passes."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < minimum:
            raise ValueError(_sentence(config, name, f"it must be at least {minimum}"))


def above(config: Any, bound: int | float, *names: str) -> None:
    """Raises ValueError where a field is not greater than `bound`; None passes."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value <= bound:
            raise ValueError(_sentence(config, name, f"it must be greater than {bound}"))


def below(config: Any, bound: int | float, *names: str) -> None:
    """Raises ValueError where a field is not less than `bound`; None passes."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value >= bound:
            raise ValueError(_sentence(config, name, f"it must be less than {bound}"))


def one_of(config: Any, name: str, values: Sequence[Any]) -> None:
    """Raises ValueError unless a field has one of the values."""
    if getattr(config, name) not in values:
        allowed = " or ".join(map(repr, values))
        raise ValueError(_sentence(config, name, f"it must be {allowed}"))


def is_regex(config: Any, name: str, pattern: str) -> None:
    """Raises ValueError unless `pattern`, found in field `name`, is a regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"{type(config).__name__}.{name}: {pattern!r} is not a regular expression ({error})"
        ) from None


def _sentence(config: Any, name: str, expected: str) -> str:
    return f"{type(config).__name__}.{name} is {getattr(config, name)!r}; {expected}"
