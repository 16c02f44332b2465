"""The whole recipe: all losses in one run, and each loss alone on examples learned by heart."""

import dataclasses
import functools
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train.processes import (
    CONFIGS,
    assert_same,
    numbers,
    saved,
    saved_steps,
    steps_done,
    train,
    training,
)
from xla import QUICK

from siglip2_jax.config import Schedule, TrainConfig, load_config
from siglip2_jax.data.collate import collate
from siglip2_jax.data.prepare import Prepare
from siglip2_jax.models.compute import Compute
from siglip2_jax.models.siglip2 import Params, flatten
from siglip2_jax.models.vision import VisionTower
from siglip2_jax.objectives.base import Objective
from siglip2_jax.objectives.distillation import Distillation
from siglip2_jax.sharding import make_mesh, put_batch
from siglip2_jax.train.inputs import abstract_batch, image_preprocessor, open_tokenizer
from siglip2_jax.train.step import Program
from siglip2_jax.types import Batch, Patches

EVERYTHING = CONFIGS / "everything.py"
MAIN, END = 15, 30  # last steps of its stages
STEPS = f"stages.main.steps={MAIN}", f"stages.curated.steps={END - MAIN}"
PATCHES = 16
CENTERS = ("['self_distill']['center']", "['masked']['projection']['center']")


def killed(workdir, step: int) -> str:
    """Lets a run go on beyond a saved step, and kills it; what it wrote."""
    with training(EVERYTHING, workdir, *STEPS) as run:
        run.wait_for(
            lambda: steps_done(workdir) >= step + 2 and saved_steps(workdir)[-1:] >= [step]
        )
        run.kill(signal.SIGKILL)
        (end,) = run.wait()
    assert end.code == -signal.SIGKILL, end.text
    return end.text


@pytest.mark.slow
def test_killed_in_either_stage_it_ends_the_same(tmp_path):
    """Losses of all steps, parameters, centers, moments and average, bit by bit."""
    whole, workdir = tmp_path / "whole", tmp_path / "run"
    (end,) = train(EVERYTHING, whole, *STEPS)
    assert end.code == 0, end.text
    killed(workdir, 5)
    first = saved_steps(workdir)[-1]
    text = killed(workdir, MAIN + 5)
    second = saved_steps(workdir)[-1]
    assert 5 <= first < MAIN < second < END
    assert f"resuming at step {first}" in text
    (end,) = train(EVERYTHING, workdir, *STEPS)
    assert end.code == 0 and f"resuming at step {second}" in end.text, end.text
    found, expected = numbers(workdir), numbers(whole)
    assert list(expected) == list(range(1, END + 1))
    assert found == expected
    for step in (MAIN, END):
        for tree in ("params", "average", "optimizer"):
            assert_same(saved(workdir, step, tree), saved(whole, step, tree))
    for tree in ("params", "average"):
        values = saved(whole, MAIN, tree)
        centers = [x for path, x in values.items() if path.endswith(CENTERS)]
        assert len(centers) == 2 and all(np.any(x) for x in centers)


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    """Every number of every step, and the parameters at the end of both stages."""
    # A large eps: gradients that are 0 but for rounding would otherwise give random directions.
    few = "stages.main.steps=3", "stages.curated.steps=2"
    few += "optim.schedule.warmup=1", "optim.eps=1e-3"
    # With scans, the CPU backend at times mixes up the all-gathers of a curated step of several
    # processes, though all run the same program; without them that was never seen.
    # Unrolled, every block is compiled by each process.
    few += "compute.scan=False", "model.vision.depth=1", "model.text.depth=1"
    few += ("stages.main.objectives.caption.depth=1",)
    alone, workdir = tmp_path / "alone", tmp_path / "run"
    (end,) = train(EVERYTHING, alone, *few, devices=4)
    assert end.code == 0, end.text
    for end in train(EVERYTHING, workdir, *few, processes=2, devices=2):
        assert end.code == 0, end.text
    found, expected = numbers(workdir), numbers(alone)
    assert found.keys() == expected.keys() == {1, 2, 3, 4, 5}
    for step, values in expected.items():
        assert found[step] == pytest.approx(values, rel=1e-5, abs=1e-5), step
        assert found[step]["digest/batch"] == values["digest/batch"]
    for step in (3, 5):
        for tree in ("params", "average"):
            assert_same(saved(workdir, step, tree), saved(alone, step, tree), atol=1e-5)


@functools.cache
def config() -> TrainConfig:
    return load_config(EVERYTHING)


def program(objectives: dict[str, Objective], index: int = 0, **fields) -> Program:
    """A stage of the run with other losses."""
    stages = list(config().stages)
    stages[index] = dataclasses.replace(stages[index], objectives=objectives, **fields)
    return Program(dataclasses.replace(config(), stages=tuple(stages)).resolved[index])


@functools.cache
def pairs() -> Batch:
    """The first 16 photos, each with its first caption and views that stay as they are."""
    stage = config().resolved[0]
    source, rng = stage.data.source.open(), np.random.default_rng(0)
    preprocess = image_preprocessor(stage)
    prepare = Prepare(preprocess, open_tokenizer(config()), stage.data.transforms)
    examples = [source[i] for i in range(16)]
    examples = [example | {"captions": example["captions"][:1]} for example in examples]
    items = [prepare(example, rng, PATCHES) for example in examples]
    return jax.tree.map(jnp.asarray, collate(items, PATCHES))


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_passes_one_after_the_other(devices, monkeypatch):
    """Loss, reports, buffers and gradient of all at once; the teacher sees the images once."""
    passes, encode = [], VisionTower.__call__
    monkeypatch.setattr(VisionTower, "__call__", lambda *args: passes.append(0) or encode(*args))
    made = program(dict(config().stages[0].objectives))
    mesh, whole = make_mesh(1, jax.devices()[:devices]), pairs()  # which others share
    with jax.set_mesh(mesh):
        init = jax.jit(made.init_params, compiler_options=QUICK)
        state, batch = made.init_state(init(jax.random.key(0))), put_batch(whole, mesh)
        teacher = made.average.start(flatten(init(jax.random.key(1))))
        state = dataclasses.replace(state, ema_params=teacher)
        resting = flatten(state.params)
        changing = {path: resting.pop(path) for path in made.trainable}
        args = changing, resting, state, batch
        traced = jax.jit(made.losses.differentiate).trace(*args)
        assert len(passes) == 4  # originals, masked, local views; the teacher's originals
        assert str(traced.jaxpr).count("optimization_barrier") == 2
        found = traced.lower().compile(QUICK)(*args)
        monkeypatch.setattr(Distillation, "own_pass", False)
        together = jax.jit(lambda *args: made.losses.differentiate(*args)).trace(*args)
        assert "optimization_barrier" not in str(together.jaxpr)
        expected = together.lower().compile(QUICK)(*args)
    equal = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(equal, found, expected)
    for name in ("caption", "self_distill", "masked"):
        assert any(np.any(x) for path, x in found[1].items() if path.startswith(f"heads/{name}/"))


def learned(name: str, peak_lr: float, kind: str = "constant", seed: int = 0, **changes):
    """Metrics of one loss at the first and at the last of 200 steps on the same pairs.

    The teacher hardly moves, so that there is something definite to learn.
    """
    steps, stage = 200, config().stages[0]
    objective = dataclasses.replace(stage.objectives[name], weight=1.0, **changes)
    schedule = Schedule(kind=kind, warmup=10)
    optim = dataclasses.replace(stage.optim, peak_lr=peak_lr, schedule=schedule, ema=0.999)
    made = program({name: objective}, steps=steps, batch_size=16, optim=optim)
    state = jax.jit(made.init_state)(jax.jit(made.init_params)(jax.random.key(seed)))
    step, history = jax.jit(made.step, donate_argnums=0), []
    for _ in range(steps):
        state, metrics = step(state, pairs())
        history.append(metrics)
    return tuple({k: float(x) for k, x in history[i].items()} for i in (0, -1))


@pytest.mark.slow
def test_sigmoid_learns_pairs_by_heart():
    """Blind to what it sees, a model would stay at 16 * H(1/16) = 3.7 nats."""
    first, last = learned("sigmoid", 3e-3)
    assert first["loss"] > 10 and last["loss"] < 0.02


@pytest.mark.slow
@pytest.mark.parametrize(("parallel", "most"), [(0.0, 0.1), (1.0, 0.5)], ids=["causal", "parallel"])
def test_decoder_learns_sentences_by_heart(parallel, most):
    """The loss starts at log 1024; in parallel nothing but the image can tell the sentence."""
    first, last = learned("caption", 3e-3, parallel=parallel)
    assert first["caption/caption"] == pytest.approx(np.log(1024), rel=1e-6)
    for task in ("caption", "refer", "ground"):
        assert last[f"caption/{task}_present"] > 0.5
        assert last[f"caption/{task}"] < (most if task == "caption" else 0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "share", "seed"), [("self_distill", 1 / 50, 1), ("masked", 1 / 5, 0)]
)
def test_student_learns_its_teachers_targets(name, share, seed):
    """Near the entropy of the targets, its floor.

    One who looks at nothing does best to guess the mean target, at an excess of the entropy of the
    mean over the mean entropy. So a small share of that excess cannot come from targets that are
    nearly the same, as where all has collapsed. The hidden patches are others in each step, so
    masked prediction is not learned by heart but from what is left.
    """
    first, last = learned(name, 6e-3, "cosine", seed)
    prototypes = config().stages[0].objectives[name].prototypes
    excess = [x["loss"] - x[f"{name}/teacher_entropy"] for x in (first, last)]
    blind = np.log(last[f"{name}/usage"] * prototypes) - last[f"{name}/teacher_entropy"]
    assert blind > 0.1
    assert 0 < excess[1] < share * blind
    assert excess[1] < excess[0] / 20


@functools.cache
def params(index: int) -> Params:
    """Fresh ones of a stage of the run."""
    made = program(config().stages[index].objectives, index)
    return jax.jit(made.init_params)(jax.random.key(0))


def first_step(compute: Compute) -> dict[str, float]:
    """Metrics of all losses at a first step."""
    stage, few = config().stages[0], jax.tree.map(lambda x: x[:4], pairs())
    made = program(stage.objectives, batch_size=4, compute=compute)
    state = jax.jit(made.init_state)(params(0))
    _, metrics = jax.jit(made.step)(state, few)
    return {name: float(x) for name, x in metrics.items()}


@pytest.mark.slow
def test_all_losses_with_the_kernels_of_tpus_as_without():
    """Interpreted, in towers, teacher, views and decoder; the gradient is in its norm."""
    kernels = Compute(attention="pallas", norm="pallas")
    found, expected = first_step(kernels), first_step(Compute())
    assert {"loss/caption", "loss/self_distill", "loss/masked"} <= found.keys()
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1], ids=["main", "curated"])
def test_patches_may_travel_in_the_dtype_of_the_towers(index):
    """Two steps with all losses, views and a curating teacher are the same bit for bit."""
    stage = config().stages[index]
    objectives = {name: x for name, x in stage.objectives.items() if not x.reads_pixels}
    size = config().resolved[index].read_size
    made = program(objectives, index, compute=Compute(dtype="bfloat16"))
    batch = jax.tree.map(lambda x: jnp.concatenate([x, x])[:size], pairs())
    likes = abstract_batch(made.stage, PATCHES, size)
    batch = dataclasses.replace(batch, fields={key: batch.fields[key] for key in likes.fields})
    halved = jax.tree.map(lambda x, like: np.asarray(x).astype(like.dtype), batch, likes)
    images = [halved.image] + [x for x in halved.fields.values() if isinstance(x, Patches)]
    assert {image.pixels.dtype for image in images} == {jnp.dtype("bfloat16")}
    assert len(images) == (3 if index == 0 else 1)
    fresh = jax.jit(made.init_state)(params(index), params(index) if made.selector else None)
    step, ends = jax.jit(made.step), []
    for given in (batch, halved):
        state = fresh
        for _ in range(2):
            state, metrics = step(state, given)
        ends.append(jax.tree.map(np.asarray, (state.params, state.optimizer, metrics)))
    for found, expected in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_array_equal(found, expected)


@functools.cache
def lowered(index: int, **objectives: Objective) -> str:
    """The step of a stage, before XLA, with the numbers it reports."""
    made = program(objectives, index)
    shapes = jax.eval_shape(made.init_params, jax.random.key(0))
    state = jax.eval_shape(made.init_state, shapes, shapes if made.selector else None)
    batch = abstract_batch(made.stage, PATCHES, made.stage.read_size)
    return jax.jit(made.step).lower(state, batch).as_text()


@pytest.mark.slow
@pytest.mark.parametrize(("index", "name"), [(0, "caption"), (1, "softmax_distill")])
def test_at_weight_0_nothing_is_left(index, name):
    """The program is the same text as without the loss: no head, no number, no operation of it."""
    objectives = config().stages[index].objectives
    off = dataclasses.replace(objectives[name], weight=0.0)
    without = lowered(index, digest=objectives["digest"])
    assert lowered(index, absent=off, digest=objectives["digest"]) == without
    on = {name: objectives[name], "digest": objectives["digest"]}
    assert f"loss/{name}" in lowered(index, **on)
