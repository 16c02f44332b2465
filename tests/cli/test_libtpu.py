"""libtpu without a TPU: no command begins with its errors, and no TPU is hidden."""

import os
import subprocess
import sys

import pytest
from train.processes import COMMAND, LIGHT

from siglip2_jax.cli.libtpu import quieten_libtpu

VARIABLES = "TPU_ACCELERATOR_TYPE", "TPU_WORKER_HOSTNAMES"


@pytest.fixture
def variables(monkeypatch):
    """The environment without what libtpu reads."""
    for name in list(os.environ):
        if name.startswith("TPU_") or name == "JAX_FORCE_TPU_INIT":
            monkeypatch.delenv(name)
    return monkeypatch


def without_tpu(test):
    """Runs with libtpu, and no TPU beside it."""
    there = any(map(os.path.exists, ("/dev/accel0", "/dev/vfio")))
    return pytest.mark.tpu(pytest.mark.skipif(there, reason="there may be a TPU")(test))


def found() -> list[str]:
    return [os.environ[name] for name in VARIABLES if name in os.environ]


@pytest.mark.parametrize("device", ["accel0", "vfio/0"])
def test_nothing_changes_where_a_tpu_may_be(tmp_path, variables, device):
    (tmp_path / device).parent.mkdir(exist_ok=True)
    (tmp_path / device).touch()
    quieten_libtpu(tmp_path)
    assert found() == []


def test_what_the_user_says_stands(tmp_path, variables):
    variables.setenv("JAX_FORCE_TPU_INIT", "1")
    quieten_libtpu(tmp_path)
    assert found() == []
    variables.delenv("JAX_FORCE_TPU_INIT")
    variables.setenv("TPU_ACCELERATOR_TYPE", "v6e-8")
    variables.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    quieten_libtpu(tmp_path)
    assert found() == ["v6e-8", "a,b"]


@without_tpu
@pytest.mark.slow
@pytest.mark.parametrize("command", ["embed", "plan"])
def test_commands_are_quiet_without_a_tpu(tmp_path, variables, model_dir, command):
    """With the platforms that JAX finds by itself, so that it tries libtpu."""
    pytest.importorskip("libtpu")
    variables.delenv("JAX_PLATFORMS")
    variables.delenv("XLA_FLAGS")
    (tmp_path / "texts.txt").write_text("a dog\n")
    texts = ["--texts", str(tmp_path / "texts.txt"), "--out", str(tmp_path / "e.npz")]
    arguments = {
        "embed": [str(model_dir), *texts],
        "plan": [str(LIGHT), "--topology", "v5e:2x2", "--budget", "16"],
    }[command]
    run = [sys.executable, "-c", COMMAND, command, *arguments]
    ended = subprocess.run(run, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0 and ended.stdout
    # Progress alone: libtpu's lines are written by C++, whatever Python's logging says.
    assert [x for x in ended.stderr.splitlines() if not x.startswith(("compiling", "embed"))] == []


@without_tpu
def test_libtpu_would_not_be_quiet_by_itself(variables):
    pytest.importorskip("libtpu")
    variables.delenv("JAX_PLATFORMS")
    run = [sys.executable, "-c", "import jax; jax.devices()"]
    ended = subprocess.run(run, capture_output=True, text=True, timeout=300)
    assert "TPU_ACCELERATOR_TYPE" in ended.stderr
