"""Configurations: what makes sense, overrides, records."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pytest

from siglip2_jax.config import (
    Checkpoints,
    Continue,
    Data,
    Group,
    Logging,
    Optim,
    Pretrained,
    Profile,
    Schedule,
    Scratch,
    Stage,
    TrainConfig,
    override,
    to_json,
)
from siglip2_jax.config.checks import one_of
from siglip2_jax.config.hints import field_hints
from siglip2_jax.data.lengths import Lengths
from siglip2_jax.data.sources import Folder, Memory, Mixture
from siglip2_jax.demo import tiny_config
from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import ModelConfig, two_towers
from siglip2_jax.objectives.base import Objective


@dataclasses.dataclass(frozen=True)
class Loss(Objective):
    """An objective with one field of every kind."""

    weight: float = 1.0
    mode: Literal["soft", "hard", 3] = "soft"
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[int, float] = (1, 0.5)
    table: Mapping[str, float] = dataclasses.field(default_factory=dict)
    label: str | None = None
    on: bool = False
    free: Any = None

    def loss(self, head, view):
        raise NotImplementedError


def stage(name: str = "main", **fields) -> Stage:
    defaults = {"steps": 100} if "examples" not in fields else {}
    defaults |= {"data": Data(source=Folder("photos")), "batch_size": 8}
    return Stage(name=name, **({"objectives": {"loss": Loss()}} | defaults | fields))


def run(*stages: Stage, **fields) -> TrainConfig:
    fields = {"model": tiny_config(), "tokenizer": "tokenizer.model"} | fields
    return TrainConfig(stages=stages or (stage(),), **fields)


FIXED = two_towers("B", patch_size=16, image_size=256)


def test_steps_of_examples():
    assert run(stage()).resolved[0].num_steps == 100
    # Fixed resolution: lengths do not matter.
    at = lambda examples, batch: run(  # noqa: E731
        stage(examples=examples, batch_size=batch), model=FIXED
    ).resolved[0]
    assert [at(n, 10).num_steps for n in (1, 10, 11, 100)] == [1, 1, 2, 10]
    assert at(40_000_000_000, 32_768).num_steps == 1_220_704


@pytest.mark.parametrize("shares", [None, (1.0, 2.0, 3.0, 4.0, 5.0)])
def test_steps_of_examples_at_native_resolution(shares):
    """Counted on the plan of what each step reads."""
    lengths = Lengths(shares=shares)
    made = run(stage(examples=6_000_000, batch_size=8, lengths=lengths)).resolved[0]
    reading = lengths.reading(0, made.num_steps, 8)
    assert reading.end == pytest.approx(6_000_000, rel=2e-3)


def test_steps_are_whole_despite_rounding():
    """Equal shares, half batches at the longest: 5/6 of a batch on average."""
    for steps in range(1, 200):
        assert run(stage(examples=10 * steps, batch_size=12)).resolved[0].num_steps == steps


def test_stages_inherit_from_the_run():
    own = Compute(dtype="bfloat16")
    made = run(stage("a"), stage("b", model=FIXED, compute=own), compute=Compute(scan=False))
    first, second = made.resolved
    assert first.model == tiny_config() and first.compute == Compute(scan=False)
    assert second.model == FIXED and second.compute == own
    assert made.stages[0].model is None
    assert made.resolved is made.resolved  # made once


def test_stages_know_their_place_in_the_run():
    """Steps count over the run; a fixed resolution has one length, with whole batches."""
    halves = Lengths(budgets=(64,), batch_scale=((64, 0.5),))
    first = stage("a", steps=7, lengths=halves)
    second = stage("b", examples=100, batch_size=10, model=FIXED, lengths=halves)
    one, two = run(first, second, seed=3).resolved
    assert (one.index, one.first_step, one.end, one.lengths) == (0, 0, 7, halves)
    assert (two.index, two.first_step, two.num_steps, two.end) == (1, 7, 10, 17)
    assert two.lengths.budgets == (256,) and two.lengths.batch_size(256, 10) == 10
    assert one.seed == two.seed == 3 and one.data_seed != two.data_seed
    assert run(stage(), seed=4).resolved[0].data_seed != one.data_seed


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schedule(warmup=-1), "warmup is -1; it must be at least 0"),
        (
            lambda: Schedule(cooldown=30.0),
            "cooldown is 30.0; it must be a share below 1, or.*: 30$",
        ),
        (lambda: Schedule(tail_start=1.5), "tail_start is 1.5; it is a fraction"),
        (lambda: Schedule(tail_stretch=0.0, total_steps=9), "must be greater than 0"),
        (lambda: Schedule(tail_stretch=2.0), "tail_stretch is 2.0 without total_steps"),
        (lambda: Group(pattern="a("), "pattern: 'a\\(' is not a regular expression"),
        (lambda: Group(pattern="a", lr_scale=0.0), "lr_scale is 0.0; it must be greater than 0"),
        (lambda: Optim(b2=1.0), "b2 is 1.0; it must be less than 1"),
        (lambda: Optim(ema=1.0), "ema is 1.0; it must be less than 1"),
        (lambda: Optim(clip_norm=0.0), "clip_norm is 0.0; it must be greater than 0"),
        (lambda: Optim(accumulate=0), "accumulate is 0; it must be at least 1"),
        (lambda: Optim(decay="*"), "decay: '\\*' is not a regular expression"),
        (lambda: Pretrained(source="x", parts=("[",)), "parts: '\\[' is not a regular"),
        (lambda: Continue(fraction=1.1), "fraction is 1.1; it is a fraction"),
        (lambda: Continue(fraction=0.5, step=5), "both a fraction and a step"),
        (lambda: Data(source=Folder("x"), max_bad_share=1.5), "max_bad_share is 1.5"),
        (lambda: Data(source=Folder("x"), cache="gs://b"), "cache is gs://b; give a local dir"),
        (lambda: Data(source=Folder("x"), threads=0), "threads is 0; it must be at least 1"),
        (lambda: stage("1"), "a stage cannot be called '1'"),
        (lambda: stage("a.b"), "a stage cannot be called 'a.b'"),
        (lambda: stage(steps=None), "needs either steps or examples"),
        (lambda: stage(steps=1, examples=1), "needs either steps or examples"),
        (lambda: stage(steps=0), "steps is 0; it must be at least 1"),
        (lambda: stage(optim=Optim(accumulate=3)), "a batch of 8 cannot be split into 3"),
        (lambda: stage(objectives={}), "has no objectives"),
        (lambda: stage(objectives={"a/b": Loss()}), "an objective cannot be called 'a/b'"),
        (lambda: Checkpoints(keep_last=0), "keep_last is 0"),
        (lambda: Logging(every=0), "every is 0"),
        (lambda: Profile(steps=0), "steps is 0"),
        (lambda: run(replica=0), "replica is 0"),
        (lambda: dataclasses.replace(run(), stages=()), "at least one stage"),
        (lambda: run(stage("a"), stage("a")), "two stages are called 'a'"),
        (lambda: run(stage(start=Continue())), "'main' is the first and continues another"),
        (
            lambda: run(stage("a"), stage("b", start=Continue(stage="c"))),
            "'b' continues 'c', which is no earlier stage; those are a",
        ),
        (
            lambda: run(stage("a"), stage("b", start=Continue(stage="b"))),
            "'b' continues 'b', which is no earlier stage",
        ),
        (
            lambda: run(stage(optim=Optim(schedule=Schedule(warmup=100)))),
            "warmup is 100 steps, but the schedule ends at step 100",
        ),
        (lambda: run(stage(batch_size=7)), "a batch of 7 scaled by 0.5"),
        (
            lambda: run(stage(batch_size=12, optim=Optim(accumulate=4))),
            "batch of 6 at 1024 patches cannot be split into 4 microbatches",
        ),
    ],
)
def test_mistakes_are_one_sentence(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_one_of():
    """Behind the type checks of these tests, so called here by itself."""
    one_of(Loss(), "mode", ("soft", "hard"))
    with pytest.raises(ValueError, match="^Loss.mode is 'soft'; it must be 'hard' or 3$"):
        one_of(Loss(), "mode", ("hard", 3))


def test_what_makes_sense():
    first = stage("first", start=Continue(workdir="gs://runs/7", stage="other"))
    branch = stage("branch", start=Continue(stage="first", fraction=0.9))
    again = stage("again", start=Continue(step=7, optimizer=False))
    assert len(run(first, branch, again).stages) == 3
    assert run(stage(batch_size=7), model=FIXED).stages[0].batch_size == 7


@pytest.mark.parametrize(
    ("assignment", "read", "expected"),
    [
        ("stages.0.optim.peak_lr=3e-4", lambda c: c.stages[0].optim.peak_lr, 3e-4),
        ("stages.main.optim.peak_lr=1", lambda c: c.stages[0].optim.peak_lr, 1.0),
        ("stages.main.steps=10", lambda c: c.stages[0].steps, 10),
        ("optim.clip_norm=None", lambda c: c.stages[0].optim.clip_norm, None),
        ("optim.clip_norm=null", lambda c: c.stages[0].optim.clip_norm, None),
        ("optim.clip_norm=2", lambda c: c.stages[0].optim.clip_norm, 2.0),
        ("optim.decay=vision/.*|t", lambda c: c.stages[0].optim.decay, "vision/.*|t"),
        ("optim.schedule.kind=rsqrt", lambda c: c.stages[0].optim.schedule.kind, "rsqrt"),
        ("model.vision.depth=2", lambda c: c.model.vision.depth, 2),
        ("compute.remat=dots", lambda c: c.compute.remat, "dots"),
        ("compute.remat=0.25", lambda c: c.compute.remat, 0.25),
        ("compute.remat=('qkv', 'x_mid')", lambda c: c.compute.remat, ("qkv", "x_mid")),
        ("compute.scan=false", lambda c: c.compute.scan, False),
        ("tokenizer=1", lambda c: c.tokenizer, "1"),
        ("tokenizer='a b=c'", lambda c: c.tokenizer, "a b=c"),
        ("data.shuffle=False", lambda c: c.stages[0].data.shuffle, False),
        ("data.source.path=gs://x", lambda c: c.stages[0].data.source.path, "gs://x"),
        ("lengths.budgets=[64, 128]", lambda c: c.stages[0].lengths.budgets, (64, 128)),
        (
            "lengths.batch_scale=((64, 1), (128, 0.5))",
            lambda c: c.stages[0].lengths.batch_scale,
            ((64, 1.0), (128, 0.5)),
        ),
        ("logging.profile.steps=9", lambda c: c.logging.profile, Profile(steps=9)),
        ("logging.wandb_project=none", lambda c: c.logging.wandb_project, "none"),
        ("objectives.loss.mode=3", lambda c: c.stages[0].objectives["loss"].mode, 3),
        ("objectives.loss.pair=(2, 3)", lambda c: c.stages[0].objectives["loss"].pair, (2, 3.0)),
        (
            "objectives.loss.table={'a': 1}",
            lambda c: c.stages[0].objectives["loss"].table.get("a"),
            1.0,
        ),
        ("objectives.loss.label=true", lambda c: c.stages[0].objectives["loss"].label, "true"),
        ("objectives.loss.on=true", lambda c: c.stages[0].objectives["loss"].on, True),
        ("objectives.loss.free={1: 'x'}", lambda c: c.stages[0].objectives["loss"].free, {1: "x"}),
        ("data.workers=auto", lambda c: c.stages[0].data.workers, "auto"),
        ("data.workers=3", lambda c: c.stages[0].data.workers, 3),
        ("objectives.loss.sizes.1=7", lambda c: c.stages[0].objectives["loss"].sizes, (1, 7)),
    ],
)
def test_override(assignment, read, expected):
    before = run()
    found = read(override(before, [assignment]))
    assert found == expected and type(found) is type(expected)
    assert read(before) != expected


def test_overrides_apply_together():
    before = run(stage("a", examples=1000), stage("b"))
    after = override(
        before,
        [
            "optim.schedule.warmup=500",
            "stages.a.steps=1000",
            "stages.1.steps=600",
            "stages.b.steps=700",
            "batch_size=16",
        ],
    )
    assert [(s.steps, s.examples) for s in after.stages] == [(1000, None), (700, None)]
    assert [s.batch_size for s in after.stages] == [16, 16]
    assert override(before, []) == before


@pytest.mark.parametrize(
    ("compute", "expected"),
    [
        (Compute(), "--set stages.a.compute.remat=full"),
        (
            Compute(remat=0.5, remat_up_to=((64, "none"),)),
            "--set stages.a.compute.remat=full --set 'stages.a.compute.remat_up_to=()'",
        ),
        (
            Compute(remat="full", remat_up_to=((64, "none"),)),
            "--set 'stages.a.compute.remat_up_to=()'",
        ),
        (Compute(remat="full"), "--set stages.a.optim.accumulate=4"),
    ],
)
def test_the_advice_where_memory_is_short(compute, expected):
    """Leads somewhere: what it says is not what the stage has."""
    optim = Optim(accumulate=2)
    made = dataclasses.replace(run(stage("a", optim=optim)), compute=compute)
    assert made.resolved[0].least_memory == expected
    settings = [word.strip("'") for word in expected.split() if word != "--set"]
    assert override(made, settings).resolved[0].least_memory != expected


@pytest.mark.parametrize("name", ["b", "1"])
def test_a_part_of_what_a_stage_has_from_the_run_is_set_for_that_stage(name):
    """Not a part of what stages have where nothing is said: in float32, say."""
    before = dataclasses.replace(run(stage("a"), stage("b")), compute=Compute(dtype="bfloat16"))
    after = override(
        before,
        [
            f"stages.{name}.compute.remat=full",
            f"stages.{name}.model.vision.depth=1",
            "compute.attention=xla",
            "model.text.depth=3",
        ],
    )
    assert after.compute == Compute(dtype="bfloat16", attention="xla")
    assert after.model.vision == before.model.vision and after.model.text.depth == 3
    a, b = after.stages
    assert a.compute is a.model is None
    assert b.compute == Compute(dtype="bfloat16", attention="xla", remat="full")
    assert b.model.vision == dataclasses.replace(before.model.vision, depth=1)
    assert b.model.text == after.model.text


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("stages.main.optim.peek_lr=3e-4", "'peek_lr' is not a field of Optim .*mean 'peak_lr'"),
        ("stages.mian.steps=3", "'mian' is not an element .*mean 'main'\\? there are 0, main"),
        ("stages.1.steps=3", "'1' is not an element"),
        ("objectives.los.weight=2", "'los' is not a key .*'loss'"),
        ("workers=3", "'workers' is not a field of a run or a stage; did you mean data.workers"),
        ("every=3", "did you mean checkpoints.every or logging.every"),
        ("speed=3", "'speed' is not a field of TrainConfig .*there are model, stages"),
        ("optim.b1=x", "'optim.b1=x': expected float, found x"),
        ("optim.b1=True", "expected float, found True"),
        ("optim.b1=1e400", "expected float, found 1e400"),
        ("optim.b1=-1e400", "expected float, found -1e400"),
        ("optim.b1=1" + "0" * 400, "expected float, found 10{199}…$"),
        (f"model.vision.depth={2**63}", f"expected int, found {2**63}"),
        ("optim.b1=a\nb", "expected float, found a b$"),
        ("model.vision.depth=1.5", "expected int, found 1.5"),
        ("model.vision.depth=True", "expected int, found True"),
        ("data.workers=all", "expected int or 'auto', found all"),
        ("data.shuffle=1", "expected bool or BlockShuffle, found 1"),
        ("optim.kind=sgd", "expected 'adam' or 'adafactor', found sgd"),
        (
            "compute.remat=dot",
            "expected 'none' or 'full' or 'dots' or tuple\\[str, ...\\] or float",
        ),
        ("steps=1e3", "expected int or None, found 1e3"),
        ("objectives.loss.pair=(1, 2, 3)", "expected tuple\\[int, float\\]"),
        ("objectives.loss.sizes=5", "expected tuple\\[int, ...\\], found 5"),
        ("data.source=x", "expected Source or Mixture, found x"),
        ("seed.x=3", "cannot set 'x' of 0, which is of type int and has no fields"),
        ("examples.x=3", "cannot set 'x' of None"),
        ("curation.chunks=2", "no Curation yet, and a new one needs teacher"),
        ("steps", "'steps' is no assignment; expected path=value"),
        ("=3", "is no assignment"),
        ("optim..b1=3", "is no assignment"),
        ("optim.b1=3", "Optim.b1 is 3.0; it must be less than 1"),
        ("start.stage=x", "'stage' is not a field of Scratch"),
    ],
)
def test_override_mistakes(assignment, message):
    with pytest.raises(ValueError, match=message) as error:
        override(run(), [assignment])
    assert "\n" not in str(error.value)


def test_override_of_a_whole_and_a_part():
    with pytest.raises(ValueError, match="set a value and a part of the same value"):
        override(run(), ["logging.profile=None", "logging.profile.start=5"])


def test_hints_of_an_unknown_type():
    @dataclasses.dataclass
    class Odd:
        x: "NotImported"  # noqa: F821, UP037
        y: int = 0

    assert field_hints(Odd) == {"x": Any, "y": Any}


def test_record_is_json():
    sources = Mixture(((Folder("photos"), 0.5), (Memory(({"image": b"1234"},)), 1.0)))
    free = [b"1234", np.float32(0.5), np.zeros((2, 3)), math.inf, json.dumps, {1: {2}}, Scratch]
    made = run(
        stage(data=Data(source=sources), objectives={"loss": Loss(free=free, table={"a": 1.0})}),
        stage("more", start=Continue(stage="main"), optim=Optim(groups=(Group(pattern="t"),))),
    )
    record = to_json(made)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    main, more = record["stages"]
    folder, memory = main["data"]["source"]["parts"]
    assert main["data"]["source"]["kind"] == "Mixture"
    assert folder[0]["kind"] == "Folder" and folder[0]["path"] == "photos" and folder[1] == 0.5
    assert memory[0].startswith("Memory(1 examples")
    loss = main["objectives"]["loss"]
    assert loss["kind"] == "Loss" and loss["sizes"] == [1, 2] and loss["table"] == {"a": 1.0}
    assert loss["free"] == [
        "4 bytes", 0.5, "float64[2, 3]", "inf", "json.dumps", {"1": "{2}"},
        "siglip2_jax.config.start.Scratch",
    ]  # fmt: skip
    assert main["start"] == {"kind": "Scratch"} and main["model"] is None
    assert more["start"]["kind"] == "Continue" and more["start"]["stage"] == "main"
    assert "kind" not in more and "kind" not in more["optim"]["groups"][0]
    assert more["optim"]["kind"] == "adam"
    assert ModelConfig.from_json(record["model"]) == made.model
