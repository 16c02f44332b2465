"""The start of a run: what it compiles, and what a second start need not compile again."""

import re
import signal
import threading
from contextlib import closing

import pytest
from train.processes import LIGHT, saved_steps, train, training

from siglip2_jax.train import startup
from siglip2_jax.train.startup import StartUp

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


class Lowered:
    """A step that compiles only while another one does."""

    def __init__(self, program, together):
        self._program, self._together = program, together

    def compile(self):
        self._together.wait(timeout=60)
        return self._program


def test_steps_of_several_lengths_compile_at_the_same_time(monkeypatch):
    monkeypatch.setattr(startup, "usable_cores", lambda: 2)
    together = threading.Barrier(2)
    steps = ((budget, Lowered(f"step {budget}", together)) for budget in (64, 128, 256, 512))
    with closing(StartUp()) as start:
        programs = start.compile("main", steps, 4)
    assert programs == {budget: f"step {budget}" for budget in (64, 128, 256, 512)}


def test_a_step_that_does_not_compile_ends_the_start():
    class Broken:
        def compile(self):
            raise ValueError("out of memory")

    with closing(StartUp()) as start, pytest.raises(ValueError, match="out of memory"):
        start.compile("main", iter([(64, Broken())]), 1)
