"""Type annotations of the configuration's fields, and the check of values against them."""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

Hint = Any


class TypeMismatch(ValueError):
    """A value that does not agree with an annotation."""


def field_hints(cls: type) -> dict[str, Hint]:
    """The type of each field of a dataclass that its constructor takes, `Any` if unknown."""
    try:
        hints = get_type_hints(cls)
    except NameError:  # a name that only type checkers import
        hints = {}
    return {f.name: hints.get(f.name, Any) for f in dataclasses.fields(cls) if f.init}


def options(hint: Hint) -> tuple[Hint, ...]:
    """The members of a union; of anything else, itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def element(hint: Hint, index: int = 0) -> Hint:
    """The type of an element of a tuple, or of a value of a mapping."""
    for option in options(hint):
        arguments = get_args(option)
        if _is_mapping(option) and len(arguments) == 2:
            return arguments[1]
        if get_origin(option) is tuple and arguments:
            return arguments[0 if arguments[-1] is ... else min(index, len(arguments) - 1)]
    return Any


def describe(hint: Hint) -> str:
    """A type as an error message names it."""
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if len(options(hint)) > 1:
        return " or ".join(describe(option) for option in options(hint))
    if hint in (None, types.NoneType):
        return "None"
    return str(hint) if get_origin(hint) else getattr(hint, "__name__", str(hint))


def fit(value: Any, hint: Hint) -> Any:
    """A literal as its field wants it: integers become floats, lists become tuples.

    Numbers are finite, and integers have at most 64 bits.

    Args:
      value: what Python's literal syntax gives.
      hint: the field's type.

    Raises:
      TypeMismatch: it is of another type.
    """
    if hint is Any:
        return value
    if len(options(hint)) > 1:
        return _fit_union(value, options(hint))
    if get_origin(hint) is Literal:
        if any(value == choice and type(value) is type(choice) for choice in get_args(hint)):
            return value
    elif hint in (None, types.NoneType):
        if value is None:
            return value
    elif hint is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    elif get_origin(hint) is tuple or hint is tuple:
        return _fit_tuple(value, hint)
    elif _is_mapping(hint) and isinstance(value, Mapping):
        return {key: fit(item, element(hint)) for key, item in value.items()}
    elif hint is int and type(value) is int and abs(value) < 2**63:
        return value
    elif hint in (bool, str) and type(value) is hint:
        return value
    raise TypeMismatch


def _fit_union(value: Any, members: tuple[Hint, ...]) -> Any:
    # Members of exactly the value's type first: 1 stays an integer for `float | int`.
    for member in sorted(members, key=lambda member: type(value) is not member):
        try:
            return fit(value, member)
        except TypeMismatch:
            continue
    raise TypeMismatch


def _fit_tuple(value: Any, hint: Hint) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise TypeMismatch
    arguments = get_args(hint)
    if arguments and arguments[-1] is not ... and len(arguments) != len(value):
        raise TypeMismatch
    return tuple(fit(item, element(hint, index)) for index, item in enumerate(value))


def _is_mapping(hint: Hint) -> bool:
    origin = get_origin(hint) or hint
    return isinstance(origin, type) and issubclass(origin, Mapping)
