"""Results of compilations, kept in files: no program is compiled twice to be measured.

A result is found by a digest of all that it depends on. Files are pickles, as trusted as the
directory of this user that they lie in; the digest of the code is part of every key.
"""

from __future__ import annotations

import functools
import logging
import os
import pickle
import re
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from siglip2_jax.cache_files import seal, unseal, user_cache
from siglip2_jax.fingerprint import fingerprint_bytes, sha256_of
from siglip2_jax.outputs import write_once

PACKAGE = Path(__file__).parents[1]

_DISTRIBUTIONS = ("jax", "jaxlib", "libtpu", "flax", "optax", "numpy")
_SETTINGS = ("JAX_", "XLA_", "LIBTPU_")  # variables of the environment that begin so
_LIBRARY = re.compile(r"/(site-packages|dist-packages|lib/python3[.\d]*)/")

log = logging.getLogger(__name__)


class Results:
    """Directory of results.

    Args:
      directory: local; None keeps nothing.
    """

    def __init__(self, directory: Path | None):
        self._directory = directory

    def get(self, key: str) -> Any:
        """The result of a key; None where there is none, or a damaged one."""
        if self._directory is None:
            return None
        try:
            content = (self._directory / key).read_bytes()
        except OSError:
            return None
        if (pickled := unseal(content)) is not None:
            return pickle.loads(pickled)
        (self._directory / key).unlink(missing_ok=True)
        return None

    def put(self, key: str, result: Any) -> None:
        """Keeps a result; a directory that cannot be written is a warning."""
        if self._directory is None:
            return
        content = seal(pickle.dumps(result))
        try:
            write_once(self._directory / key, content)
        except OSError as error:
            log.warning("the result of a compilation cannot be kept: %s", error)


NO_RESULTS = Results(None)


def user_results() -> Results:
    """Results in the user's cache directory."""
    return Results(user_cache("plans"))


def key_of(kind: str, *parts: str | bytes) -> str:
    """Key of a result, which also depends on the compiler: its version and its settings.

    Args:
      kind: of result, the beginning of the key.
      parts: all else that it depends on.
    """
    settings = sorted(x for x in os.environ.items() if x[0].startswith(_SETTINGS))
    every = [repr(_versions()), repr(settings), *parts]
    digests = [fingerprint_bytes(x.encode() if isinstance(x, str) else x) for x in every]
    return f"{kind}-{fingerprint_bytes(' '.join(digests).encode())}"


def describe_mesh(mesh: Mesh) -> str:
    """The chips of a mesh, their places, and its axes."""
    chips = [
        (x.device_kind, x.id, getattr(x, "coords", None), getattr(x, "slice_index", None))
        for x in mesh.devices.flat
    ]
    return repr((dict(mesh.shape), chips))


@functools.cache
def digest_code(*folders: str) -> str:
    """Digest of Python files of this package.

    Args:
      folders: those that count, with all in them; none stands for the whole package.
    """
    files = {path for x in folders or ("",) for path in (PACKAGE / x).rglob("*.py")}
    return _digest_files(files)


def digest_user_code() -> str:
    """Digest of imported modules that belong neither to this package nor to a library.

    Such are a config and what it imports.
    """
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    paths = {Path(file) for file in files if file and not _LIBRARY.search(file)}
    return _digest_files(x for x in paths if PACKAGE not in x.parents and x.is_file())


def _digest_files(paths: Iterable[Path]) -> str:
    lines = [f"{path} {sha256_of(path)}" for path in sorted(paths)]
    return fingerprint_bytes("\n".join(lines).encode())


@functools.cache
def _versions() -> list[tuple[str, str]]:
    return [(name, _version(name)) for name in _DISTRIBUTIONS] + [("python", sys.version)]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
