"""A configuration as plain values, for the record of a run."""

from __future__ import annotations

import dataclasses
import math
import os
import types
from collections.abc import Mapping
from typing import Any

import numpy as np

from siglip2_jax.config.hints import Hint, element, field_hints, options


def to_json(config: Any, hint: Hint = None) -> Any:
    """A configuration as values that `json.dumps` takes; for people, tools and comparisons.

    Dataclasses become objects. Where a field may hold several classes (sources, starts, objectives,
    transforms) the object begins with "kind", the name of its class. Tuples become lists, bytes and
    arrays their sizes; a dataclass with a representation of its own, such as examples in memory,
    becomes that, and so does everything that JSON does not know.

    Args:
      config: a `TrainConfig`, or any part of one.
      hint: the type that the field of `config` is annotated with; None is its own class.
    """
    if config is None or isinstance(config, bool | int | str):
        return config
    if isinstance(config, float):
        return config if math.isfinite(config) else repr(config)
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return _object(config, hint)
    if isinstance(config, Mapping):
        return {str(key): to_json(value, element(hint)) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_json(value, element(hint, index)) for index, value in enumerate(config)]
    if isinstance(config, bytes | bytearray):
        return f"{len(config)} bytes"
    if isinstance(config, np.generic):
        return to_json(config.item())
    shape, dtype = getattr(config, "shape", None), getattr(config, "dtype", None)
    if shape is not None and dtype is not None:
        return f"{dtype}{list(shape)}"
    if callable(config) and hasattr(config, "__qualname__"):
        return f"{config.__module__}.{config.__qualname__}"
    return os.fspath(config) if isinstance(config, os.PathLike) else repr(config)


def _object(config: Any, hint: Hint) -> Any:
    """A dataclass as JSON."""
    if not config.__dataclass_params__.repr:
        return repr(config)
    known = hint is None or [x for x in options(hint) if x is not types.NoneType] == [type(config)]
    kind = {} if known else {"kind": type(config).__name__}
    fields = field_hints(type(config))
    return kind | {name: to_json(getattr(config, name), fields[name]) for name in fields}
