"""Versions that fit together, as the packages themselves say, and the same on all hosts."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet

from siglip2_jax.doctor.check import Findings, failed, passed
from siglip2_jax.doctor.examine import SECONDS_TO_MEET
from siglip2_jax.train.distributed import gather
from siglip2_jax.train.versions import Versions, check_equal, in_words, installed_versions

PACKAGES = ("siglip2_jax", "jax", "flax")
"""Packages whose requirements are checked; jax names the versions of jaxlib and libtpu that fit."""
_EXTRAS = ("", "tpu", "cuda12", "cuda13")  # of jax, where it names what runs on accelerators
_WAY_OUT = (
    "install the versions of uv.lock: scripts/tpu/setup.sh, or uv sync --frozen --extra tpu (cuda "
    "on a GPU)"
)


def check_versions() -> Findings:
    """Requirements of the packages against what is installed."""
    misfits = list(find_misfits(_requirements(), _installed()))
    if misfits:
        yield failed("versions", "; ".join(misfits), "those that fit together", _WAY_OUT)
    else:
        yield passed("versions", in_words(installed_versions()), "those that fit together")


def find_misfits(
    requirements: Mapping[str, list[str]], installed: Mapping[str, str]
) -> Iterator[str]:
    """Sentences on packages that are installed in a version that another one does not work with.

    Args:
      requirements: by the package that has them, as `importlib.metadata` gives them; "python>=3.11"
        too.
      installed: version of every package that is there, and of "python".
    """
    for package, lines in requirements.items():
        for line in lines:
            with suppress(InvalidRequirement):
                needed = Requirement(line)
                version = installed.get(_plain(needed.name))
                if version is None or not _applies(needed):
                    continue
                if not needed.specifier.contains(version, prereleases=True):
                    yield (
                        f"{needed.name} is {version}, and {package} {installed.get(package, '')} "
                        f"works with {needed.specifier}"
                    )


def check_same_versions() -> Findings:
    """Versions of all processes against those of process 0."""
    texts = gather(json.dumps(installed_versions()), SECONDS_TO_MEET)
    versions: list[Versions] = [json.loads(text) for text in texts if text is not None]
    try:
        check_equal(versions)
    except ValueError as error:
        yield failed("versions of all hosts", str(error), "the same", _WAY_OUT)
    else:
        yield passed("versions of all hosts", f"the same on {len(versions)}", "the same")


def _applies(needed: Requirement) -> bool:
    if needed.marker is None:
        return True
    return any(needed.marker.evaluate({"extra": extra}) for extra in _EXTRAS)


def _requirements() -> dict[str, list[str]]:
    requirements = {}
    for package in PACKAGES:
        lines = list(metadata.requires(package) or ())
        python = metadata.metadata(package)["Requires-Python"]
        requirements[package] = lines + ([f"python{SpecifierSet(python)}"] if python else [])
    return requirements


def _installed() -> dict[str, str]:
    names = {_plain(x.metadata["Name"]): x.version for x in metadata.distributions()}
    return names | {"python": platform.python_version()}


def _plain(name: str) -> str:
    """Name of a package as it is compared; those of `PACKAGES` are unchanged."""
    return name.lower().replace("-", "_").replace(".", "_")
