"""The step and the data of a run: well, slow, and broken."""

import dataclasses
import time

import jax
import numpy as np
import pytest

from siglip2_jax.config import Data, override
from siglip2_jax.data.sources import Memory
from siglip2_jax.doctor import step as steps
from siglip2_jax.doctor.checks import Doctor, state_bytes
from siglip2_jax.doctor.examine import run_checks
from siglip2_jax.doctor.input import Rates, check_reading, judge_input, source_of
from siglip2_jax.planner.hlo.program import memory
from siglip2_jax.recipes import tiny
from siglip2_jax.sharding import make_mesh
from siglip2_jax.train.chips import V5E
from siglip2_jax.train.inputs import open_tokenizer, stage_pipeline


@pytest.fixture
def step():
    """Results of a step, with another program; `tests/cli/test_doctor.py` runs a real one."""
    program = jax.jit(lambda x: x + 1).lower(np.zeros(4, np.float32)).compile()
    return steps.Step(1.5, 0.2, 8, 16, 10**9, program, 100)


def check_of(doctor, name):
    return next(x for phase in doctor.phases() for x in phase() if x.name == name)


def judge(step, estimate=None):
    return {
        x.check: x for x in steps.judge_step(step, make_mesh(), lambda *_: estimate, "--set remat")
    }


def test_a_step(step, monkeypatch):
    statuses = {name: x.status for name, x in judge(step).items()}
    assert statuses == {"step: loss": "PASS", "step: time": "SKIP", "step: memory": "SKIP"}
    assert steps.estimate_of(step, make_mesh()) is None
    assert judge(step, step.seconds / 1.9)["step: time"].status == "PASS"
    late = judge(step, step.seconds / 2.1)["step: time"]
    assert late.status == "FAIL" and "the estimate is" in late.way_out
    wrong = judge(step._replace(loss=float("nan")))["step: loss"]
    assert wrong.status == "FAIL" and "compute.attention=xla" in wrong.way_out
    monkeypatch.setattr(steps, "find_chip", lambda _: V5E)
    assert judge(step)["step: memory"].status == "PASS"
    tight = dataclasses.replace(V5E, hbm_bytes=memory(step.compiled)["peak"] + step.waiting - 1)
    monkeypatch.setattr(steps, "find_chip", lambda _: tight)
    full = judge(step)["step: memory"]
    assert full.status == "FAIL" and "remat" in full.way_out


def test_the_estimate_of_a_program(step, monkeypatch):
    """Three million cycles of the compiler on a v5e; on other devices there is none."""
    text = """HloModule test, is_scheduled=true

ENTRY %main (p: f32[4,4]) -> f32[4,4] {
  %p = f32[4,4]{1,0} parameter(0)
  ROOT %c = f32[4,4]{1,0} copy(%p), backend_config={"estimated_cycles":"3000000"}
}"""
    mesh = make_mesh(1, jax.devices()[:1])
    assert steps.estimate_of(step, mesh) is None
    monkeypatch.setattr(steps, "find_chip", lambda _: V5E)
    assert steps.estimate_of(step, mesh) is None  # the CPU's compiler estimates nothing
    monkeypatch.setattr(steps, "TPU", "cpu")
    monkeypatch.setattr(type(step.compiled), "as_text", lambda _: text)
    assert steps.estimate_of(step, mesh) == pytest.approx(0.002)


def test_a_random_batch():
    config = tiny.config()
    stage = config.resolved[0]
    prepare = stage_pipeline(stage, open_tokenizer(config)).prepare
    batch = steps.random_batch(prepare, 32, 11)
    assert len(batch.text) == 11 and batch.image.pixels.shape[:2] == (11, 32)
    np.testing.assert_array_equal(batch.image.pixels[8], batch.image.pixels[0])
    assert not np.array_equal(batch.image.pixels[0], batch.image.pixels[1])
    assert batch.image.valid.sum(1).min() > 16


def test_a_broken_step_is_a_fail(monkeypatch):
    def refuse(*_):
        raise ValueError("RESOURCE_EXHAUSTED: 17 GiB")

    monkeypatch.setattr(steps, "run_step", refuse)
    doctor = Doctor(tiny.config(), tiny.config())
    check = check_of(doctor, "step")
    ((finding,), _) = run_checks([lambda: [check]], 60.0, lambda reason: reason)
    assert finding.status == "FAIL" and "17 GiB" in finding.measured
    assert "remat" in finding.way_out and check.late == "SKIP"


class Slow(Memory):
    """A source that takes its time."""

    def open(self):
        examples = super().open()

        class Waiting:
            def __len__(self):
                return len(examples)

            def __getitem__(self, index):
                time.sleep(0.02)
                return examples[index]

        return Waiting()


@pytest.mark.parametrize(("kind", "status"), [(Memory, "PASS"), (Slow, "FAIL")])
def test_data_against_what_a_step_needs(monkeypatch, kind, status):
    config = tiny.config()
    first = config.stages[0].data.source.open()[0]
    source = kind(examples=(first | {"captions": ("one",)},) * 8)
    data = Data(source=source, threads=1)
    config = dataclasses.replace(config, stages=(dataclasses.replace(config.stages[0], data=data),))
    monkeypatch.setattr("siglip2_jax.doctor.checks.SECONDS_OF_DATA", 0.2)
    doctor = Doctor(config, config)
    check = check_of(doctor, "data")
    doctor._step = steps.Step(1.0, 0.32, 32, 32, 1, None, 0)  # 100 images a second
    read, prepared = check.run()
    assert (read.check, read.status, read.limit) == ("data: read", status, 100.0)
    assert prepared.check == "data: prepared" and prepared.value > 0


def test_data_that_is_prepared_too_slowly():
    read, prepared = judge_input(Rates(500.0, 50.0), 100.0)
    assert (read.status, prepared.status) == ("PASS", "FAIL") and "data.workers" in prepared.way_out


def test_data_that_cannot_be_used(tmp_path):
    class Bad(Memory):
        def open(self):
            return [{"name": "x"}]

    good, bad = (
        dataclasses.replace(tiny.config().stages[0].data, source=x)
        for x in (
            tiny.config().stages[0].data.source,
            Bad(examples=()),
        )
    )
    assert check_reading(good, 0.1)[0].status == "PASS"
    with pytest.raises(KeyError):
        check_reading(bad, 0.1)
    doctor = Doctor(None, tiny.config(), data=str(tmp_path))
    check = check_of(doctor, "data")
    ((finding,), _) = run_checks([lambda: [check]], 60.0, lambda reason: reason)
    assert finding.status == "FAIL" and "captions.jsonl: no such file" in finding.measured


@pytest.mark.slow
def test_needs_of_a_stage(tmp_path):
    config = override(tiny.config(), [f"data.source.path={tmp_path}"])
    name = "needs of stage main"
    (finding,) = check_of(Doctor(tiny.config(), tiny.config()), name).run()
    assert finding.status == "PASS"
    with pytest.raises(ValueError, match="no such file"):  # which is a FAIL
        list(check_of(Doctor(config, config), name).run())


@pytest.mark.parametrize(
    ("pattern", "kind"),
    [("a/*.tar", "Tars"), ("gs://b/x.parquet", "Parquet"), ("x.array_record", "Records")],
)
def test_sources_of_files(pattern, kind):
    assert source_of(pattern).pattern == pattern and type(source_of(pattern)).__name__ == kind
    assert type(source_of("folder")).__name__ == "Folder"


@pytest.mark.slow
def test_bytes_of_a_checkpoint():
    stage = tiny.config().resolved[0]
    count = sum(x.size for x in jax.tree.leaves(steps.Program(stage).shapes))
    assert 8 * count < state_bytes(stage) <= 12 * count + 100
