"""Suites in Python files."""

from __future__ import annotations

import os

from siglip2_jax.benchmarks.suite import Suite
from siglip2_jax.config.modules import call_function, load_function


def load_suite(path: str | os.PathLike[str]) -> Suite:
    """Calls the `suite()` of a Python file, or of `package.module`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it has no function `suite`, running it failed, or it does not return a `Suite`.
    """
    source = os.fspath(path)
    return call_function(load_function(source, "suite", Suite), {}, source, Suite)
