"""`uv.lock`: fits pyproject.toml, names public places only, holds what runs on TPUs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "uv.lock").read_text()
LOCK = tomllib.loads(TEXT)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SETUP = (ROOT / "scripts" / "tpu" / "setup.sh").read_text()
EXTRAS = re.findall(r"--extra (\w+)", SETUP)
(PYTHON,) = re.findall(r"^python=(\S+)", SETUP, flags=re.M)
HOST = {
    "python_full_version": PYTHON,
    "python_version": PYTHON.rpartition(".")[0],
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "os_name": "posix",
    "extra": "",
}
RELOCK = "run `uv lock` (docs/tpu.md, Versions)"


def locked() -> dict[str, str]:
    """Versions that a TPU host gets of what pyproject.toml names."""
    version = {package["name"]: package["version"] for package in LOCK["package"]}
    (project,) = (x for x in LOCK["package"] if x["source"] == {"editable": "."})
    edges = sum((project["optional-dependencies"][x] for x in EXTRAS), project["dependencies"])
    edges = [x for x in edges if "marker" not in x or Marker(x["marker"]).evaluate(HOST)]
    # An edge says its version where the lock has several.
    return {edge["name"]: edge.get("version", version[edge["name"]]) for edge in edges}


def test_a_host_gets_what_the_project_asks_for():
    assert EXTRAS == ["tpu", "gcs", "remote", "tensorboard"]
    lines = sum((PROJECT["optional-dependencies"][x] for x in EXTRAS), PROJECT["dependencies"])
    wanted = [Requirement(line) for line in lines]
    wanted = [x for x in wanted if x.marker is None or x.marker.evaluate(HOST)]
    found = locked()
    assert found.keys() == {canonicalize_name(x.name) for x in wanted}, RELOCK
    misfits = [str(x) for x in wanted if found[canonicalize_name(x.name)] not in x.specifier]
    assert misfits == [], RELOCK


def test_it_is_of_this_version_and_its_pythons():
    (project,) = (x for x in LOCK["package"] if x["name"] == canonicalize_name(PROJECT["name"]))
    assert project["version"] == PROJECT["version"], RELOCK
    assert LOCK["requires-python"].replace(" ", "") == PROJECT["requires-python"], RELOCK


def test_it_names_public_places_only():
    """No mirror of the machine where it was made, and every file with its hash."""
    places = {x["source"].get("registry", "editable") for x in LOCK["package"]}
    assert places == {"https://pypi.org/simple", "editable"}
    urls = re.findall(r'url = "(.*?)", hash = "sha256:[0-9a-f]{64}"', TEXT)
    assert len(urls) == TEXT.count("url = ") > 1000
    assert {url.split("/")[2] for url in urls} == {"files.pythonhosted.org"}


def test_uv_finds_nothing_to_change(tmp_path):
    beside = Path(sys.executable).with_name("uv")
    program = shutil.which("uv") or (str(beside) if beside.exists() else None)
    if program is None:
        pytest.skip("uv is not installed")
    command = [program, "lock", "--check", "--offline", "--cache-dir", str(tmp_path)]
    command += ["--python", sys.executable, "--default-index", "https://pypi.org/simple"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{RELOCK}: {done.stderr}"


def test_classifiers_are_the_pythons_from_the_oldest_on():
    prefix = "Programming Language :: Python :: 3."
    minors = [int(x.removeprefix(prefix)) for x in PROJECT["classifiers"] if x.startswith(prefix)]
    assert PROJECT["requires-python"].startswith(f">=3.{minors[0]}")
    assert minors == list(range(minors[0], minors[0] + len(minors)))
