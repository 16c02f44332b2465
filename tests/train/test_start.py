"""Starts of a stage: fresh, from a model in any format, from another stage."""

import dataclasses
import logging
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train.runs import HEADS, SMALL, Sevens, numbers, run, save_run, stage

from siglip2_jax.checkpoints.resize import resize_param
from siglip2_jax.config import Continue, Group, Optim, Pretrained, Scratch
from siglip2_jax.demo import TOKENIZER
from siglip2_jax.inference.embedder import Embedder
from siglip2_jax.models.siglip2 import flatten
from siglip2_jax.objectives.self_distill import SelfDistill
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.preprocess.tokenizer import Tokenizer
from siglip2_jax.sharding import make_mesh
from siglip2_jax.testing import random_params
from siglip2_jax.train.checkpoint import RunCheckpoints, by_path
from siglip2_jax.train.start import abstract_state, initialize_stage
from siglip2_jax.train.step import Program

MESH = make_mesh(1, jax.devices()[:4])
MODEL = flatten(random_params(SMALL))
RESIZED = {"vision/pos/table": (32, 32, 24), "vision/embed/kernel": (14 * 14 * 3, 24)}
FINE = dataclasses.replace(
    SMALL, vision=dataclasses.replace(SMALL.vision, patch_size=14, grid=32, image_size=448)
)


def start(config, index: int = 0, workdir: str = "nowhere", program=Sevens):
    return initialize_stage(program(config.resolved[index]), config, MESH, workdir)


def assert_fresh(state) -> None:
    """No moments, and the step and counts of a beginning."""
    for path, x in numbers(state.optimizer).items():
        assert not x.any(), path


@pytest.fixture(scope="module")
def fresh() -> dict:
    """A state from nothing."""
    config = run(stage(objectives=HEADS))
    state = start(config, program=Program)
    like = by_path(abstract_state(Program(config.resolved[0]), MESH))
    for path, x in by_path(state).items():
        assert (x.shape, x.dtype, x.sharding) == (
            like[path].shape,
            like[path].dtype,
            like[path].sharding,
        )
    assert_fresh(state)
    return numbers(state)


@pytest.mark.slow
def test_scratch(fresh):
    """The same on any number of devices, but for the rounding of what XLA fuses."""
    config = run(stage(objectives=HEADS))
    params = jax.jit(Program(config.resolved[0]).init_params)(jax.random.key(0))
    for path, x in flatten(params).items():
        found = fresh[f"params/{path}"]
        np.testing.assert_allclose(found, x, rtol=1e-6, atol=1e-8, err_msg=path)
        np.testing.assert_array_equal(fresh[f"ema_params/{path}"], found, err_msg=path)
    assert fresh["params/t"] == np.float32(math.log(10)) and fresh["params/b"] == -10
    assert fresh["step"] == 0 and fresh["params/heads/colour/kernel"].std() > 0.1


@pytest.mark.slow
def test_another_seed(fresh):
    other = numbers(start(run(stage(objectives=HEADS), seed=1), program=Program))
    for path, x in other.items():
        same = np.array_equal(x, fresh[path])
        assert same == (np.ptp(x) == 0), path  # constants only


@pytest.fixture(scope="module")
def formats(tmp_path_factory) -> dict[str, str]:
    """One model in every format, and as the last checkpoint of a run."""
    directory = tmp_path_factory.mktemp("formats")
    preprocess, words = ImagePreprocessor(16, None), Tokenizer.load(TOKENIZER)
    model = Embedder(SMALL, random_params(SMALL), preprocess, words)
    paths = {"orbax": "ours", "hf": "theirs", "npz": "model.npz"}
    for format, name in paths.items():
        model.save(directory / name, format)
    return {format: str(directory / name) for format, name in paths.items()}


@pytest.mark.parametrize(
    "format", ["hf", *(pytest.param(x, marks=pytest.mark.slow) for x in ("orbax", "npz"))]
)
def test_pretrained(formats, format):
    source = Pretrained(source=formats[format], bias_shift=2.5)
    state = start(run(stage(start=source)))
    for path, x in numbers(state.params).items():
        expected = MODEL[path] + np.float32(2.5 * (path == "b"))
        np.testing.assert_array_equal(x, expected, err_msg=path)
        np.testing.assert_array_equal(by_path(state.ema_params)[path], expected, err_msg=path)
    assert_fresh(state)


@pytest.mark.slow
def test_pretrained_by_a_run(tmp_path):
    """Its last checkpoint's average here; heads stay behind."""
    saved = save_run(tmp_path, run(stage(objectives=HEADS)), [10], MESH)
    source = Pretrained(source=str(tmp_path / "checkpoints" / "10" / "average"))
    found, wanted = numbers(start(run(stage(start=source))).params), numbers(saved[10].ema_params)
    assert found.keys() == {path for path in wanted if not path.startswith("heads/")}
    for path, x in found.items():
        np.testing.assert_array_equal(x, wanted[path], err_msg=path)


def test_parts(formats):
    """One tower is taken, the other and the head are fresh."""
    source = Pretrained(source=formats["npz"], parts=("vision/.*", "t"))
    state = start(run(stage(start=source, objectives=HEADS)))
    for path, x in numbers(state.params).items():
        taken = path.startswith("vision/") or path == "t"
        np.testing.assert_array_equal(x, MODEL[path] if taken else 7)


def test_parts_that_match_nothing(formats):
    source = Pretrained(source=formats["npz"], parts=("vison/.*",))
    message = "'vison/.*',. match none of the parameters of .*whole paths such as 'vision/"
    with pytest.raises(ValueError, match=message):
        start(run(stage(start=source)))


def test_resized(formats):
    """Another patch size and grid; all else is taken as it is."""
    state = start(run(stage(start=Pretrained(source=formats["npz"])), model=FINE))
    for path, x in numbers(state.params).items():
        expected = MODEL[path]
        if path in RESIZED:
            expected = resize_param(path, expected, RESIZED[path])
            assert expected.shape == RESIZED[path]
        np.testing.assert_array_equal(x, expected, err_msg=path)


@pytest.mark.parametrize(
    "tower, field, value, path",
    [("vision", "depth", 1, "vision/encoder"), ("text", "mlp_dim", 48, "text/encoder")],
)
def test_other_sizes(formats, tower, field, value, path):
    sizes = dataclasses.replace(getattr(SMALL, tower), **{field: value})
    model = dataclasses.replace(SMALL, **{tower: sizes})
    message = rf"^{path}.* has shape \(.*npz and \(.*take the sizes of the model from its release"
    with pytest.raises(ValueError, match=message) as error:
        start(run(stage(start=Pretrained(source=formats["npz"])), model=model))
    assert "\n" not in str(error.value)


def test_missing_source(tmp_path):
    with pytest.raises(OSError, match="there is no file or directory"):
        start(run(stage(start=Pretrained(source=str(tmp_path / "model.npz")))))


FIRST = stage("first", 10)
TRUNK = run(FIRST)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def saved(workdir):
    """Three checkpoints of a stage of ten steps."""
    return {step: numbers(x) for step, x in save_run(workdir, TRUNK, [4, 8, 10], MESH).items()}


def second(start=None, **fields):
    """A run that branches off the first stage."""
    return run(FIRST, stage("second", 6, start=start or Continue(), **fields))


@pytest.mark.slow
@pytest.mark.parametrize(
    "source, step",
    [
        (Continue(), 10),
        (Continue(stage="first", fraction=0.8), 8),
        (Continue(step=4), 4),
    ],
    ids=["end", "fraction", "step"],
)
def test_continue(workdir, saved, source, step):
    """Parameters, averages and moments go on; the schedule starts anew; the run's steps go on."""
    state = start(second(source), 1, workdir)
    for path, x in numbers(state.ema_params).items():
        np.testing.assert_array_equal(x, saved[step][f"ema_params/{path}"], err_msg=path)
    for path, x in numbers(state.params).items():
        np.testing.assert_array_equal(x, saved[step][f"params/{path}"], err_msg=path)
    for path, x in numbers(state.optimizer).items():
        expected = 0 if path == "count" else saved[step][f"optimizer/{path}"]
        np.testing.assert_array_equal(x, expected, err_msg=path)
    assert int(state.optimizer.moments[1].count) == step
    assert state.step == 10 and state.step.dtype == jnp.int32


@pytest.mark.slow
def test_continue_with_a_fresh_average(workdir, saved, tmp_path):
    """The average is fresh if asked for, and if the earlier stage kept none."""
    save_run(tmp_path, run(stage("first", optim=Optim())), [10], MESH)
    for source, directory in ((Continue(average=False), workdir), (Continue(), tmp_path)):
        state = start(second(source), 1, directory)
        params = numbers(state.params)
        for path, x in numbers(state.ema_params).items():
            np.testing.assert_array_equal(x, params[path], err_msg=path)


@pytest.mark.slow
def test_continue_the_average_of_what_teaches(tmp_path):
    """It is restored as it is; a stage that averages the whole model starts the rest anew."""
    silc = {"silc": SelfDistill(weight=1.0, prototypes=4, hidden=4, bottleneck=4)}
    config = run(stage("first", objectives=silc), stage("second", start=Continue(average=True)))
    before = numbers(save_run(tmp_path, config, [10], MESH)[10].ema_params)
    assert {path.split("/")[0] for path in before} == {"vision", "heads"}
    checkpoints = RunCheckpoints(tmp_path)
    like = abstract_state(Sevens(config.resolved[0]), MESH)
    restored = numbers(checkpoints.restore(10, like).ema_params)
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, restored, before)
    state = start(config, 1, tmp_path)
    params, average = numbers(state.params), numbers(state.ema_params)
    assert average.keys() == params.keys() and any(path.startswith("text/") for path in average)
    for path, x in average.items():
        wanted = before[path] if path.startswith("vision/") else params[path]
        np.testing.assert_array_equal(x, wanted, err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize("first, then", [(False, True), (True, False)], ids=["to", "from"])
def test_continue_to_and_from_an_average_of_heads(tmp_path, first, then):
    """Heads go on as they were averaged; a tower that was not averaged starts as the student."""
    silc = {"silc": SelfDistill(weight=1.0, prototypes=4, hidden=4, bottleneck=4)}
    kinds = {"first": first, "second": then}
    config = run(
        *(
            stage(name, objectives=silc, optim=Optim(ema=0.9, ema_heads=heads), start=source)
            for (name, heads), source in zip(kinds.items(), (Scratch(), Continue()), strict=True)
        )
    )
    before = numbers(save_run(tmp_path, config, [10], MESH)[10].ema_params)
    state = start(config, 1, tmp_path)
    params, average = numbers(state.params), numbers(state.ema_params)
    expected = {"heads"} if then else {"heads", "vision"}
    assert {path.split("/")[0] for path in average} == expected
    for path, x in average.items():
        wanted = before[path] if path.startswith("heads/") else params[path]
        np.testing.assert_array_equal(x, wanted, err_msg=path)


@pytest.mark.slow
def test_continue_with_a_fresh_optimizer(workdir, saved):
    state = start(second(Continue(optimizer=False)), 1, workdir)
    np.testing.assert_array_equal(state.params["b"], saved[10]["params/b"])
    assert_fresh(state)


@pytest.mark.slow
def test_continue_another_run(workdir, saved, caplog, tmp_path):
    """By its last stage; a fraction takes the nearest checkpoint that there is, and says so."""
    for source, step in (
        (Continue(workdir=str(workdir), stage="first", step=4), 4),
        (Continue(workdir=str(workdir), fraction=0.7), 8),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            state = start(run(stage(start=source)), 0, tmp_path)
        np.testing.assert_array_equal(state.params["b"], saved[step]["params/b"])
        assert state.step == 0
        assert ("step 8, the nearest to 7" in caplog.text) == (step == 8)


@pytest.mark.slow
def test_fresh_heads(workdir, saved):
    """Heads that the earlier stage lacks are fresh, moments too; all else is kept."""
    state = start(second(objectives=HEADS), 1, workdir)
    for path, x in numbers(state.params).items():
        expected = 7 if path.startswith("heads/") else saved[10][f"params/{path}"]
        np.testing.assert_array_equal(x, expected, err_msg=path)
    for path, x in numbers(state.ema_params).items():
        expected = 7 if path.startswith("heads/") else saved[10][f"ema_params/{path}"]
        np.testing.assert_array_equal(x, expected, err_msg=path)
    moments = state.optimizer.moments[1]
    assert int(moments.count) == 10
    for path in state.optimizer.moments[1].mu:
        for name, moment in (("mu", moments.mu), ("nu", moments.nu)):
            old = saved[10].get(f"optimizer/moments/1/{name}/{path}", 0)
            np.testing.assert_array_equal(moment[path], old, err_msg=path)


@pytest.mark.slow
def test_heads_that_are_gone(workdir, tmp_path):
    """A stage without the objective has no use for its head."""
    save_run(tmp_path, run(stage("first", objectives=HEADS)), [10], MESH)
    state = start(second(), 1, tmp_path)
    assert not [path for path in by_path(state) if "colour" in path]


@pytest.mark.slow
def test_another_part_learns(workdir, saved):
    """A tower that is frozen from here on has no moments; the other's go on."""
    optim = Optim(groups=(Group(pattern="vision/.*", frozen=True),))
    state = start(second(optim=optim), 1, workdir)
    moments = state.optimizer.moments[1]
    assert moments.mu and not [path for path in moments.mu if path.startswith("vision/")]
    for path, x in moments.mu.items():
        np.testing.assert_array_equal(x, saved[10][f"optimizer/moments/1/mu/{path}"])


@pytest.mark.slow
def test_continue_resized(workdir, saved):
    """Resized parameters have no moments to keep."""
    state = start(second(model=FINE), 1, workdir)
    moments = numbers(state.optimizer.moments[1].mu)
    for path, x in numbers(state.params).items():
        old, moment = saved[10][f"params/{path}"], saved[10][f"optimizer/moments/1/mu/{path}"]
        if path in RESIZED:
            old, moment = resize_param(path, old, RESIZED[path]), 0
        np.testing.assert_array_equal(x, old, err_msg=path)
        np.testing.assert_array_equal(moments[path], moment, err_msg=path)
    assert {k: x.shape for k, x in numbers(state.ema_params).items() if k in RESIZED} == RESIZED


@pytest.mark.slow
def test_nothing_to_continue(workdir, saved, tmp_path):
    with pytest.raises(ValueError, match="is no run to continue: it has no checkpoints/"):
        start(run(stage(start=Continue(workdir=str(tmp_path / "typo")))))
    assert not (tmp_path / "typo").exists()
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="holds no checkpoint to continue from"):
        start(run(stage(start=Continue(workdir=str(tmp_path)))))
    with pytest.raises(ValueError, match="holds no step 5; it holds 4, 8, 10$"):
        start(second(Continue(step=5)), 1, workdir)
    source = Continue(workdir=str(workdir), stage="second")
    with pytest.raises(ValueError, match="no stage 'second' to continue; there are: first"):
        start(run(stage(start=source)))
