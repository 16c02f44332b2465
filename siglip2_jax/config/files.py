"""Configurations in Python files, and as plain values for the record of a run."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from etils import epath

from siglip2_jax.config.hints import Hint, element, field_hints, options
from siglip2_jax.config.override import override, split_arguments
from siglip2_jax.config.run import TrainConfig

T = TypeVar("T")


def load_config(path: str | os.PathLike[str], assignments: Sequence[str] = ()) -> TrainConfig:
    """Runs a Python file's `config()`, and changes what it returns.

    Args:
      path: the file, local or remote (`gs://`).
      assignments: `name=value`. Where `name` is a parameter of `config()`, it is passed to it:
        that is how files offer choices from which much else follows, such as a scale. All others
        are changes to the result, as in `override`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it has no function `config`, running it failed, it does not return a
        `TrainConfig`, or an assignment leads nowhere; one sentence, with the line of the file where
        it failed.
    """
    make = load_function(path, "config", TrainConfig)
    arguments, changes = split_arguments(assignments, make)
    return override(call_function(make, arguments, str(path), TrainConfig), changes)


def load_function(path: str | os.PathLike[str], name: str, kind: type) -> Callable[..., Any]:
    """Runs a Python file and returns its function `name`, which is to return a `kind`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: running it failed, or it has no such function.
    """
    file = epath.Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a Python file with a {name}()")
    # Dataclasses look their module up by name, so the file becomes one.
    module = types.ModuleType(f"config_{file.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    try:
        exec(compile(file.read_text(), str(path), "exec"), module.__dict__)
    except Exception as error:
        raise ValueError(_where(error, str(path))) from error
    make = getattr(module, name, None)
    if not callable(make):
        raise ValueError(
            f"{path} has no function {name}(); define one that returns a {kind.__name__}"
        )
    return make


def call_function(
    make: Callable[..., T], arguments: Mapping[str, Any], path: str, kind: type[T]
) -> T:
    """Calls a function of the Python file `path`.

    Raises:
      ValueError: it failed, with the line of the file, or it does not return a `kind`.
    """
    try:
        found = make(**arguments)
    except Exception as error:
        raise ValueError(_where(error, path)) from error
    if not isinstance(found, kind):
        raise ValueError(
            f"{make.__name__}() of {path} returned a {type(found).__name__}, no {kind.__name__}"
        )
    return found


def _where(error: Exception, path: str) -> str:
    """The error with the file's last line that took part in it."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    if isinstance(error, SyntaxError) and error.filename == path:
        lines.append(error.lineno)
        error = SyntaxError(error.msg)  # its text would name the file once more
    place = f"{path}:{lines[-1]}" if lines else path
    name = "" if type(error) is ValueError else f"{type(error).__name__}: "
    return f"{place}: {name}{' '.join(str(error).split())}"


def to_json(config: Any, hint: Hint = None) -> Any:
    """A configuration as values that `json.dumps` takes; for people and tools, not to be read back.

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
    if hasattr(config, "shape") and hasattr(config, "dtype"):
        return f"{config.dtype}{list(config.shape)}"
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
