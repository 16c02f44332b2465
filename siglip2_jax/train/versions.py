"""Versions of the software that trains: the same in every process, kept with what a run saves."""

from __future__ import annotations

import json
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from siglip2_jax.train.distributed import exchange

ROOT = Path(__file__).parents[2]  # of the checkout, where the package is in one
ARCHIVED = ".git_archival.txt"  # where `git archive` notes the commit

Versions = Mapping[str, str]  # by the name of the package; "commit" and "python" too


def agreed_versions() -> dict[str, str]:
    """Versions that this process runs, and all others too; every process calls it alike.

    Raises:
      ValueError: processes run different ones.
    """
    versions = installed_versions()
    check_equal([json.loads(text) for text in exchange(json.dumps(versions))])
    return versions


def installed_versions() -> dict[str, str]:
    """Versions of this package, its commit, JAX and Python; without what is not there."""
    versions = {"siglip2_jax": metadata.version("siglip2_jax")}
    if commit := find_commit(ROOT):
        versions["commit"] = commit
    for name in ("jax", "jaxlib", "libtpu"):
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions | {"python": platform.python_version()}


def find_commit(root: Path) -> str | None:
    """Commit of a checkout, "-dirty" where its files are changed, or of a `git archive`, if any."""
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "--no-optional-locks", "describe"]
        command += ["--always", "--abbrev=40", "--exclude=*", "--dirty"]
        with suppress(OSError):  # git is not installed
            return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
        return None
    file = root / ARCHIVED
    text = file.read_text().strip() if file.is_file() else ""
    return text if re.fullmatch(r"[0-9a-f]{40,64}", text) else None


def check_equal(processes: Sequence[Versions]) -> None:
    """Checks that all processes run the same.

    Args:
      processes: the versions of each.

    Raises:
      ValueError: they do not; names the first that differs from process 0, and in what.
    """
    odd = [index for index, versions in enumerate(processes) if versions != processes[0]]
    if not odd:
        return
    there, here = differences(processes[odd[0]], processes[0])
    name = f"process {odd[0]}" + (f" (one of {len(odd)} that differ)" if len(odd) > 1 else "")
    raise ValueError(
        f"{name} runs {there} where process 0 runs {here}; install the same versions on all hosts "
        "(scripts/tpu/setup.sh)"
    )


def differences(a: Versions, b: Versions) -> tuple[str, str]:
    """Words for what two sets of versions do not share, on either side; empty if all is equal."""
    names = [name for name in {**a, **b} if a.get(name) != b.get(name)]
    return _words(a, names), _words(b, names)


def in_words(versions: Versions) -> str:
    """Versions in one line, such as `siglip2_jax 0.1.0, jax 0.12.0`."""
    return _words(versions, list(versions))


def _words(versions: Versions, names: Sequence[str]) -> str:
    return ", ".join(
        f"{name} {versions[name]}" if name in versions else f"no {name}" for name in names
    )
