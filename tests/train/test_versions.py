"""Versions: known, equal in all processes, kept with what a run saves, compared on resuming."""

import json
import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import jax
import jaxlib
import pytest
from etils import epath
from train.processes import LIGHT, train
from train.runs import Sevens, random_state, run, stage

import siglip2_jax
from siglip2_jax import checkpoints as convert
from siglip2_jax.train.checkpoint import RunCheckpoints
from siglip2_jax.train.distributed import FAILED
from siglip2_jax.train.run import Run
from siglip2_jax.train.versions import (
    ARCHIVED,
    ROOT,
    check_equal,
    differences,
    find_commit,
    in_words,
    installed_versions,
)

NEW = {"siglip2_jax": "0.2.0", "jax": "0.12.0.1", "libtpu": "0.0.50", "python": "3.12.16"}
OLD = {"siglip2_jax": "0.2.0", "jax": "0.10.2", "python": "3.12.16"}
CONFIG = run(stage(batch_size=16))


def test_versions_are_those_that_run():
    versions = installed_versions()
    assert versions["siglip2_jax"] == siglip2_jax.__version__
    assert (versions["jax"], versions["jaxlib"]) == (jax.__version__, jaxlib.__version__)
    assert versions["python"] == platform.python_version()
    tpu = any(package.name == "libtpu" for package in metadata.distributions())
    assert ("libtpu" in versions) == tpu
    if (ROOT / ".git").exists() and shutil.which("git"):
        assert versions["commit"].removesuffix("-dirty") == git(ROOT, "rev-parse", "HEAD")


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_of_a_checkout_and_of_its_archive(tmp_path):
    checkout, copy = tmp_path / "checkout", tmp_path / "copy"
    checkout.mkdir(), copy.mkdir()
    for name in (ARCHIVED, ".gitattributes"):
        (checkout / name).write_bytes((ROOT / name).read_bytes())
    assert find_commit(checkout) is None  # neither
    git(checkout, "init", "--quiet")
    assert find_commit(checkout) is None  # nothing is committed
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "--message", "first")
    git(checkout, "tag", "-a", "v1", "--message", "a tag does not take its place")
    commit = git(checkout, "rev-parse", "HEAD")
    assert find_commit(checkout) == commit and len(commit) == 40
    git(checkout, "archive", f"--output={tmp_path / 'copy.tar'}", "HEAD")
    subprocess.run(["tar", "-xf", tmp_path / "copy.tar", "-C", copy], check=True)
    assert find_commit(copy) == commit
    (checkout / ".gitattributes").write_text("")
    assert find_commit(checkout) == f"{commit}-dirty"


def test_differences_in_words():
    assert differences(NEW, NEW) == ("", "")
    assert differences(OLD, NEW) == ("jax 0.10.2, no libtpu", "jax 0.12.0.1, libtpu 0.0.50")
    assert in_words(OLD) == "siglip2_jax 0.2.0, jax 0.10.2, python 3.12.16"


def test_processes_that_differ():
    check_equal([NEW])
    check_equal([NEW, dict(NEW)])
    way_out = "install the same versions on all hosts (scripts/tpu/setup.sh)"
    with pytest.raises(ValueError) as error:
        check_equal([NEW, NEW, NEW, OLD])
    assert str(error.value) == (
        "process 3 runs jax 0.10.2, no libtpu where process 0 runs jax 0.12.0.1, libtpu 0.0.50; "
        + way_out
    )
    with pytest.raises(ValueError, match=r"^process 1 \(one of 2 that differ\) runs jax 0.12.0.1"):
        check_equal([OLD, NEW, NEW])


@pytest.mark.slow
def test_two_processes_of_which_one_has_another_jaxlib(tmp_path):
    """Both end with the same sentence, before they write anything; equal ones go on, and say so."""
    info = tmp_path / "jaxlib-0.9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: jaxlib\nVersion: 0.9.9\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    workdir, changes = tmp_path / "run", ("stages.main.steps=1", "optim.schedule.warmup=0")
    options = {"processes": 2, "devices": 1}
    for end in train(LIGHT, workdir, *changes, **options, variables=[{}, {"PYTHONPATH": path}]):
        assert end.code == FAILED and "Traceback" not in end.text, end.text
        assert end.text.splitlines()[-1] == (
            f"siglip2: error: process 1 runs jaxlib 0.9.9 where process 0 runs jaxlib "
            f"{jaxlib.__version__}; install the same versions on all hosts (scripts/tpu/setup.sh)"
        )
        assert not workdir.exists()
    for index, end in enumerate(train(LIGHT, workdir, *changes, **options)):
        assert end.code == 0, end.text
        jax_and_python = f"jaxlib {jaxlib.__version__},( libtpu \\S+,)? python 3"
        line = f"^process {index} of 2 runs siglip2_jax .*{jax_and_python}"
        assert len(re.findall(line, end.text, flags=re.M)) == 1, end.text
    assert json.loads((workdir / "config.json").read_text())["versions"] == installed_versions()
    reader = RunCheckpoints(workdir)
    assert reader.record(1)["versions"] == installed_versions()
    reader.close()


@pytest.mark.slow
def test_resuming_with_other_versions_warns(tmp_path, caplog):
    """The checkpoint keeps those that saved it; config.json has those that ran last."""

    def opened(versions) -> tuple[Run, list[str]]:
        caplog.clear()
        made = Run(CONFIG, epath.Path(tmp_path), versions)
        made.begin()
        assert json.loads((tmp_path / "config.json").read_text())["versions"] == versions
        return made, [line.getMessage() for line in caplog.records if line.levelname == "WARNING"]

    first, lines = opened(OLD)
    assert lines == []
    (stage,) = CONFIG.resolved
    data = {"position": 32, "bad_examples": 0}
    first.save(random_state(Sevens(stage), first.mesh, 4), 4, stage, data)
    first.close()
    assert convert.read(str(tmp_path)).config == CONFIG.model
    for versions, message in (
        (OLD, []),
        (
            NEW,
            [
                f"step 4 of {tmp_path} was saved with jax 0.10.2, no libtpu; the run goes on with "
                "jax 0.12.0.1, libtpu 0.0.50"
            ],
        ),
    ):
        resumed, lines = opened(versions)
        assert lines == message
        assert resumed.checkpoints.record(4)["versions"] == OLD
        resumed.close()


@pytest.mark.slow
def test_a_checkpoint_of_an_early_release_is_resumed_silently(tmp_path, caplog):
    early = Run(CONFIG, epath.Path(tmp_path), OLD)
    early.begin()
    record = convert.orbax.describe(CONFIG.model, CONFIG.preprocessing) | {"stage": "main"}
    record |= {"step": 4, "stages": [["main", 0, 10]], "position": 32, "bad_examples": 0}
    early.checkpoints.save(random_state(Sevens(CONFIG.resolved[0]), early.mesh, 4), 4, record)
    early.close()
    Run(CONFIG, epath.Path(tmp_path), NEW).close()
    assert [line for line in caplog.records if line.levelname == "WARNING"] == []
