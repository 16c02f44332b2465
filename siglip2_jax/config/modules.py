"""Functions of Python modules, by file or by import name, and what goes wrong in them."""

from __future__ import annotations

import atexit
import functools
import importlib
import importlib.util
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from etils import epath

T = TypeVar("T")

# Folders of imported files, the newest first; they are the end of `sys.path`.
_FOLDERS: list[str] = []


def load_function(source: str, name: str, kind: type) -> Callable[..., Any]:
    """Imports a module and returns its function that makes a `kind`.

    A file is imported once, under its own name and with its folder on `sys.path`, of which started
    processes get a copy: they import it alike, so what it defines can be pickled. Of two files with
    the same name in different folders, the one imported last counts.

    Args:
      source: a Python file, local or remote (`gs://`), or an import name; `:function` may follow.
      name: the function, where none follows.
      kind: what it makes, for messages.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: importing failed, or there is no such function.
    """
    module, name = _split(source, name)
    file = _local_file(source)
    if file and not file.is_file():
        raise FileNotFoundError(f"{module}: no such file; expected a Python file with a {name}()")
    try:
        imported = _import_file(file) if file else _import_name(module)
    except Exception as error:
        raise ValueError(_where(error, source)) from error
    make = getattr(imported, name, None)
    if not callable(make):
        raise ValueError(
            f"{module} has no function {name}(); define one that returns a {kind.__name__}"
        )
    return make


def call_function(
    make: Callable[..., T], arguments: Mapping[str, Any], source: str, kind: type[T]
) -> T:
    """Calls a function that `load_function` returned.

    Raises:
      ValueError: it failed, with the line of the file, or it does not return a `kind`.
    """
    try:
        result = make(**arguments)
    except Exception as error:
        raise ValueError(_where(error, source)) from error
    if not isinstance(result, kind):
        raise ValueError(
            f"{make.__name__}() of {source} must return a {kind.__name__}, "
            f"not {type(result).__name__}"
        )
    return result


def is_file(source: str) -> bool:
    """True where a source names a file rather than a module."""
    module, _ = _split(source)
    return "/" in module or module.endswith(".py")


def _split(source: str, default: str = "") -> tuple[str, str]:
    """Module and function of a source."""
    module, _, function = source.rpartition(":")
    return (module, function) if module and function.isidentifier() else (source, default)


def _local_file(source: str) -> Path | None:
    """File of a source on this machine; None for an import name."""
    module, _ = _split(source)
    if not is_file(source):
        return None
    return _copy(module) if "://" in module else Path(module).resolve()


@functools.cache
def _copy(remote: str) -> Path:
    """Local copy of a remote file, until this process ends."""
    text = epath.Path(remote).read_text()
    folder = Path(tempfile.mkdtemp(prefix="siglip2_config_")).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / os.path.basename(remote)).write_text(text)
    return folder / os.path.basename(remote)


def _import_name(module: str) -> ModuleType:
    """Imports a module that is installed or lies in the working directory."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return importlib.import_module(module)


def _import_file(file: Path) -> ModuleType:
    """Imports a file as the module of its name."""
    name, folder = file.stem, str(file.parent)
    if file.suffix != ".py" or "." in name:
        raise ValueError("a config must be called NAME.py, without other dots")
    current = getattr(sys.modules.get(name), "__file__", None) or ""
    if os.path.dirname(current) in set(_FOLDERS) - {folder}:
        del sys.modules[name]
    if folder in _FOLDERS or folder not in sys.path:
        sys.path[:] = [path for path in sys.path if path not in _FOLDERS]
        _FOLDERS[:] = [folder, *(path for path in _FOLDERS if path != folder)]
        sys.path += _FOLDERS
    importlib.invalidate_caches()
    spec = importlib.util.find_spec(name)
    if spec is None or Path(spec.origin or "").resolve() != file:
        origin = spec.origin if spec else None
        raise ValueError(f"{origin} is a module called {name!r} too; give the config another name")
    return importlib.import_module(name)


def _where(error: Exception, source: str) -> str:
    """The error with the file's last line that took part in it."""
    file = str(_local_file(source))
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    if isinstance(error, SyntaxError) and error.filename == file:
        lines.append(error.lineno)
        error = SyntaxError(error.msg)  # its text would name the file once more
    place = f"{source}:{lines[-1]}" if lines else source
    name = "" if type(error) is ValueError else f"{type(error).__name__}: "
    return f"{place}: {name}{' '.join(str(error).split())}"
