"""The start of a run: what it compiles, and what a second start need not compile again."""

import re
import signal

import pytest
from train.processes import LIGHT, saved_steps, train, training

# JAX's own variable, which these processes otherwise have, would be left as it is.
OWN = ({"JAX_COMPILATION_CACHE_DIR": ""},)
STEPS = ("stages.main.steps=60", "checkpoints.every=5")
READY = r"its step for ([\d, ]+) patches is ready after [\d.]+ s: (\d+) programs compiled, (\d+)"
FIRST = r"first step after [\d.]+ s: (\d+) programs compiled, (\d+) from (\S+)"


@pytest.mark.slow
def test_a_killed_run_compiles_nothing_when_it_starts_again(tmp_path):
    workdir = tmp_path / "run"
    with training(LIGHT, workdir, *STEPS, devices=1, variables=OWN) as run:
        run.wait_for(lambda: (workdir / "checkpoints").is_dir() and saved_steps(workdir))
        run.kill(signal.SIGKILL)
        (killed,) = run.wait()
    assert re.search(READY, killed.text).groups() == ("16, 32", "2", "0"), killed.text
    compiled, read, place = re.search(FIRST, killed.text).groups()
    assert int(compiled) >= 4 and read == "0" and place == str(workdir / "programs")
    programs = {path: path.read_bytes() for path in (workdir / "programs").iterdir()}
    assert len(programs) >= int(compiled)
    (end,) = train(LIGHT, workdir, *STEPS, devices=1, variables=OWN)
    assert end.code == 0 and "resuming at step" in end.text, end.text
    assert re.search(READY, end.text).groups() == ("16, 32", "0", "2"), end.text
    assert re.search(FIRST, end.text)[1] == "0"
    again = {path: path.read_bytes() for path in (workdir / "programs").iterdir()}
    assert again == programs


@pytest.mark.slow
def test_several_devices_of_a_cpu_compile_at_every_start(tmp_path):
    workdir, steps = tmp_path / "run", ("stages.main.steps=6",)
    own = ({"JAX_COMPILATION_CACHE_DIR": "", "JAX_ENABLE_COMPILATION_CACHE": "true"},)
    (end,) = train(LIGHT, workdir, *steps, devices=2, variables=own)
    assert end.code == 0 and re.search(r"first step .* compiled, no cache\n", end.text), end.text
    assert not (workdir / "programs").exists()
