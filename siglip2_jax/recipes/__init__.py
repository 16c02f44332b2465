"""Configs that ship with the package, each a module with a `config()`, found by name."""

from __future__ import annotations

import ast
import difflib
from importlib import resources


def summaries() -> dict[str, str]:
    """Names of all recipes, each with the first line of its docstring; imports none of them."""
    texts = {
        file.name.removesuffix(".py"): file.read_text(encoding="utf-8")
        for file in resources.files(__name__).iterdir()
        if file.name.endswith(".py") and file.name != "__init__.py"
    }
    lines = {name: ast.get_docstring(ast.parse(text)) or "" for name, text in texts.items()}
    return {name: lines[name].partition("\n")[0] for name in sorted(lines)}


def locate(config: str) -> str:
    """Source of a config for `load_config`: a recipe's name becomes its module and function.

    Args:
      config: a recipe's name; a path or `package.module:function` is returned as it is.

    Raises:
      ValueError: there is no recipe of this name.
    """
    if any(mark in config for mark in "./:"):
        return config
    names = summaries()
    if config not in names:
        close = difflib.get_close_matches(config, names, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ValueError(
            f"{config!r} is no recipe; {hint}expected a name that `siglip2 configs` lists, a "
            "Python file, package.module:function, or the config.json of a run"
        )
    return f"{__name__}.{config}:config"
