"""Suites in Python files."""

from __future__ import annotations

import os

from siglip2_jax.benchmarks.suite import Suite
from siglip2_jax.config.files import call_function, load_function


def load_suite(path: str | os.PathLike[str]) -> Suite:
    """Runs a Python file's `suite()`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it has no function `suite`, running it failed, or it does not return a `Suite`.
    """
    return call_function(load_function(path, "suite", Suite), {}, str(path), Suite)
