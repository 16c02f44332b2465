"""Both objectives in the training step; monitors and alarms."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from objectives.samples import (
    SIZES,
    SMALL,
    Scene,
    batch,
    directions,
    head,
    measure,
    participation,
    project,
    scene,
    view,
)

from siglip2_jax.config import Checkpoints, Data, Optim, Stage, TrainConfig
from siglip2_jax.data.sources import Folder
from siglip2_jax.models.compute import Compute
from siglip2_jax.models.siglip2 import SigLIP2, abstract_model, flatten, unflatten
from siglip2_jax.objectives.caption import Captioning
from siglip2_jax.objectives.distillation import rank_share
from siglip2_jax.objectives.masked import MaskedPrediction
from siglip2_jax.objectives.self_distill import SelfDistill
from siglip2_jax.objectives.sigmoid import Sigmoid
from siglip2_jax.sharding import device_put_global, make_mesh, param_shardings, put_batch
from siglip2_jax.train.checkpoint import RunCheckpoints
from siglip2_jax.train.heads import fold_name
from siglip2_jax.train.start import abstract_state
from siglip2_jax.train.step import Program

OBJECTIVE = SelfDistill(weight=0.25, chunk=12, **SIZES)
MASKED = MaskedPrediction(weight=0.0625, chunk=12, **SIZES)
BOTH = (("masked", MASKED), ("silc", OBJECTIVE))
SILC = BOTH[1:]
PASSES = (BOTH[0], ("silc", dataclasses.replace(OBJECTIVE, views_at_once=1)))
TIPS = (("masked", dataclasses.replace(MASKED, targets="all")), BOTH[1])
UPDATES = 2


@functools.cache
def matching(objective):
    shown = view(scene(OBJECTIVE))
    return jax.jit(lambda *arrays: objective.match(shown, *arrays)[1])


def distilled(change) -> tuple[str, ...]:
    """Alarms on 256 random features whose heads and features were changed."""
    objective = dataclasses.replace(OBJECTIVE, prototypes=64, bottleneck=8)
    heads = head(objective, 1), head(objective, 2)
    rng = np.random.default_rng(0)
    student, teacher = (rng.standard_normal(shape) for shape in ((256, 1, 12), (256, 12)))
    teacher = change(*heads, teacher)
    arrays = (jnp.asarray(x, jnp.float32) for x in (student, teacher, np.full((256, 1), 1 / 256)))
    report = matching(objective)(heads, *arrays)
    rank = rank_share(jnp.asarray(teacher, jnp.float32))
    return objective.alarms({k: float(x) for k, x in (report | {"rank": rank}).items()})


def uniform(student_head, teacher_head, teacher):
    """The center has caught up with features that are nearly all the same."""
    teacher = teacher[:1] + 0.01 * teacher
    vectors = teacher_head.project(jnp.asarray(teacher, jnp.float32), jnp.float32)
    student_head.center[...] = vectors.mean(0) @ teacher_head.directions(jnp.float32)
    return teacher


def winner(student_head, teacher_head, teacher):
    """All features point to one prototype."""
    teacher_head.fc3.kernel[...] *= 0.001
    teacher_head.fc3.bias[...] = teacher_head.directions(jnp.float32)[:, 3]
    return teacher


@pytest.mark.slow
def test_alarms():
    assert distilled(lambda student, teacher, features: features) == ()
    (alarm,) = distilled(uniform)
    assert "nearly uniform" in alarm and f"{math.log(64):.3f} nats" in alarm
    (alarm,) = distilled(winner)
    assert "collapsed onto about 1." in alarm and "of 64 prototypes" in alarm
    fine = {"teacher_entropy": 2.0, "usage": 0.5, "rank": 0.2}
    assert OBJECTIVE.alarms(fine) == ()
    (alarm,) = OBJECTIVE.alarms(fine | {"rank": 0.005})
    assert "0.50% of the directions" in alarm


def test_alarms_at_full_size_at_the_start():
    """Prototypes in random directions, features that agree in part: no false alarm in step 0."""
    rng = np.random.default_rng(0)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    vectors = unit(
        0.7 * unit(rng.standard_normal(256)) + 0.7 * unit(rng.standard_normal((16, 256)))
    )
    cosines = vectors @ unit(rng.standard_normal((65_536, 256))).T
    for center in (0, cosines.mean(0)):
        logits = (cosines - center) / 0.04
        targets = np.exp(logits - logits.max(1, keepdims=True))
        targets /= targets.sum(1, keepdims=True)
        entropy = -(targets * np.log(targets)).sum(1).mean()
        mean = targets.mean(0)
        usage = np.exp(-(mean * np.log(mean)).sum()) / 65_536
        report = {"teacher_entropy": entropy, "usage": usage, "rank": participation(vectors)}
        assert SelfDistill(weight=1.0).alarms(report) == ()


@pytest.mark.parametrize("shape", [None, (1, 4), (2, 2)], ids=str)
def test_rank(shape):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((40, 12)) * np.arange(1, 13) + 50).astype(np.float32)
    flat = np.outer(rng.standard_normal(200), rng.standard_normal(128)).astype(np.float32) + 3
    same = np.full((8, 12), 7.0, np.float32)
    if shape is None:
        values = [rank_share(jnp.asarray(x)) for x in (x, flat, same)]
    else:
        mesh = make_mesh(shape[0], jax.devices()[:4])
        with jax.set_mesh(mesh):
            values = [jax.jit(rank_share)(put_batch(x, mesh)) for x in (x, flat, same)]
            assert all(v.sharding == NamedSharding(mesh, PartitionSpec()) for v in values)
    np.testing.assert_allclose(values[0], participation(x), rtol=1e-4)
    np.testing.assert_allclose(values[1], 1 / 128, rtol=1e-4)
    assert values[2] == 0
    worst = {"teacher_entropy": 1.0, "usage": 0.5, "rank": float(values[1])}
    assert len(OBJECTIVE.alarms(worst)) == 1


@functools.cache
def program(objectives=BOTH, accumulate: int = 1, **ema: bool) -> Program:
    optim = Optim(peak_lr=0.01, eps=1e-3, ema=0.9, accumulate=accumulate, **ema)
    stage = Stage(
        name="main",
        data=Data(source=Folder("nowhere")),
        batch_size=8,
        steps=UPDATES + 1,
        objectives=dict(objectives),
        optim=optim,
    )
    return Program(TrainConfig(model=SMALL, stages=(stage,), tokenizer="").resolved[0])


def start(made: Program) -> dict[str, np.ndarray]:
    """Every value random, centers too, the same for all programs."""
    rng = np.random.default_rng(0)
    shapes = program().shapes
    values = {path: rng.normal(0, 0.3, x.shape) for path, x in shapes.items()}
    values |= {"t": 2.3, "b": -2.0}
    return {path: np.asarray(values[path], np.float32) for path in made.shapes}


@functools.cache
def run(shape: tuple[int, int] | None = None, objectives=BOTH, accumulate: int = 1, **ema: bool):
    """Parameters, averages and metrics, before and after each of two updates."""
    made = program(objectives, accumulate, **ema)
    if shape is None:
        return _run(made, start(made), lambda x: x)
    mesh = make_mesh(shape[0], jax.devices()[: shape[0] * shape[1]])
    with jax.set_mesh(mesh):
        shardings = param_shardings(mesh, made.shapes)
        params = {path: device_put_global(x, shardings[path]) for path, x in start(made).items()}
        return _run(made, params, lambda x: put_batch(jax.tree.map(np.asarray, x), mesh))


def _run(made: Program, params: dict, place) -> list[tuple[dict, dict, dict]]:
    state = jax.jit(made.init_state)(unflatten(params))
    step, history, metrics = jax.jit(made.step), [], {}
    kinds = jax.tree.map(jax.typeof, state)
    for i in range(UPDATES + 1):
        found = (flatten(x) for x in (state.params, state.ema_params))
        host = [{path: np.asarray(x) for path, x in part.items()} for part in found]
        history.append((*host, {name: float(x) for name, x in metrics.items()}))
        if i < UPDATES:
            state, metrics = step(state, place(batch(i)))
            assert jax.tree.map(jax.typeof, state) == kinds
    return history


def assert_same(found, expected, atol: float = 1e-5):
    for have, want in zip(found, expected, strict=True):
        for part, wanted in zip(have, want, strict=True):
            assert part.keys() == wanted.keys()
            for path, x in wanted.items():
                np.testing.assert_allclose(part[path], x, rtol=atol, atol=atol, err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "objectives"),
    [((2, 2), PASSES), ((1, 4), BOTH)],
    ids=["2x2 in passes", "1x4"],
)
def test_any_mesh_trains_alike(shape, objectives):
    """The local views in one pass or in several."""
    assert_same(run(shape, objectives), run())


@pytest.mark.slow
def test_metrics():
    for *_, metrics in run()[1:]:
        parts = {"silc": 0.25, "masked": 0.0625}
        total = sum(weight * metrics[f"loss/{name}"] for name, weight in parts.items())
        np.testing.assert_allclose(metrics["loss"], total, rtol=1e-5)
        for name in ("silc", "masked"):
            assert 0 < metrics[f"{name}/teacher_entropy"] < math.log(16)
            assert metrics[f"loss/{name}"] > metrics[f"{name}/teacher_entropy"] * 0.8
            assert 1 / 16 < metrics[f"{name}/usage"] <= 1
            assert 1 / 8 - 1e-6 <= metrics[f"{name}/rank"] <= 1


@pytest.mark.slow
def test_the_average_is_of_what_teaches():
    """The vision tower, heads, mask token and centers."""
    history = run()
    teaching = {path for path in history[0][0] if path.startswith(("vision/", "heads/"))}
    assert {"heads/masked/mask_token", *CENTERS} < teaching
    for (_, before, _), (params, after, _) in zip(history, history[1:], strict=False):
        assert after.keys() == before.keys() == teaching
        for path, x in after.items():
            wanted = 0.9 * np.float64(before[path]) + 0.1 * np.float64(params[path])
            np.testing.assert_allclose(x, wanted, rtol=1e-5, atol=1e-7, err_msg=path)


@functools.cache
def by_heads():
    """A run whose average is of heads alone, and whose patch loss is over all patches."""
    return run(None, TIPS, ema_heads=True)


@pytest.mark.slow
def test_an_average_of_heads_alone():
    """It holds no tower; before the first update, its teacher is what a whole average's is."""
    history = by_heads()
    heads = {path for path in history[0][0] if path.startswith("heads/")}
    assert history[0][1].keys() == heads
    for (_, before, _), (params, after, _) in zip(history, history[1:], strict=False):
        assert after.keys() == heads
        for path, x in after.items():
            wanted = 0.9 * np.float64(before[path]) + 0.1 * np.float64(params[path])
            np.testing.assert_allclose(x, wanted, rtol=1e-5, atol=1e-7, err_msg=path)
    whole = {name: x for name, x in run()[1][2].items() if "silc" in name}
    assert len(whole) == 4
    assert {name: history[1][2][name] for name in whole} == pytest.approx(whole, rel=1e-6)


@pytest.mark.slow
def test_the_teachers_tower_is_the_students():
    """The second step's loss is that of the latest tower as teacher, under the averaged head."""
    objective, (params, average, _) = TIPS[0][1], by_heads()[1]
    trees = [jax.tree.map(jnp.asarray, unflatten(x)) for x in (params, average)]
    module = nnx.graphdef(head(objective, 0))
    heads = [nnx.merge(module, tree["heads"]["masked"]) for tree in trees]
    tower = {name: x for name, x in trees[0].items() if name != "heads"}
    student, teacher = (nnx.merge(abstract_model(SMALL)[0], tower) for _ in range(2))
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 1), 0)  # step 1, part 0
    shown = Scene(objective, batch(1), student, teacher, *heads, fold_name(key, "masked"))
    loss = by_heads()[2][2]["loss/masked"]
    np.testing.assert_allclose(measure(shown)[0], loss, rtol=1e-5)


@pytest.mark.slow
def test_an_average_of_heads_on_eight_devices_resumes(tmp_path):
    """It trains as on one; saved after a step and read again, the next gives the same bits."""
    made, mesh = program(TIPS, ema_heads=True), make_mesh(2, jax.devices()[:8])
    checkpoints = RunCheckpoints(tmp_path, Checkpoints(every=1))
    with jax.set_mesh(mesh):
        shardings = param_shardings(mesh, made.shapes)
        params = {path: device_put_global(x, shardings[path]) for path, x in start(made).items()}
        batches = [put_batch(jax.tree.map(np.asarray, batch(i)), mesh) for i in range(UPDATES)]
        step = jax.jit(made.step)
        first = step(jax.jit(made.init_state)(unflatten(params)), batches[0])[0]
        checkpoints.save(first, 1, {})
        checkpoints.wait()
        assert set(checkpoints.shapes(1, "average")) == set(made.average.paths)
        ends = [step(first, batches[1])]
        ends.append(step(checkpoints.restore(1, abstract_state(made, mesh)), batches[1]))
    checkpoints.close()
    whole, resumed = (jax.tree.map(np.asarray, end) for end in ends)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    state, metrics = whole
    found = flatten(state.params), flatten(state.ema_params), metrics
    assert_same([found], by_heads()[2:])


CENTERS = {"heads/silc/center", "heads/masked/projection/center"}


@pytest.mark.slow
def test_heads_without_a_teacher_are_not_averaged():
    """Unless everything is; a stage that keeps no average has none of anything."""
    stage = program((*BOTH, ("caption", Captioning()))).stage
    optim = stage.optim

    def averaged(optim: Optim) -> set[str]:
        return set(Program(dataclasses.replace(stage, optim=optim)).average.paths)

    everything = set(Program(stage).shapes)
    left_out = {path for path in everything if path.startswith(("text/", "heads/caption/"))}
    assert len(left_out) > 20
    assert everything - averaged(optim) == left_out | {"t", "b"}
    assert averaged(dataclasses.replace(optim, ema_all=True)) == everything
    assert averaged(dataclasses.replace(optim, ema=None)) == set()
    taught = {path for path in everything if path.startswith(("heads/silc/", "heads/masked/"))}
    assert averaged(dataclasses.replace(optim, ema_heads=True)) == taught


def test_an_average_of_heads_needs_heads_and_a_decay():
    with pytest.raises(ValueError, match="'main' has no objective that learns from a teacher"):
        program((("sigmoid", Sigmoid()),), ema_heads=True)
    with pytest.raises(ValueError, match="heads alone, but ema is None; set ema to a decay such"):
        Optim(ema_heads=True)
    with pytest.raises(ValueError, match="heads alone, but ema_all averages the whole model"):
        Optim(ema=0.9, ema_heads=True, ema_all=True)


@pytest.mark.slow
def test_the_teacher_without_a_text_tower():
    made = program()
    average = unflatten({path: jnp.zeros(made.shapes[path].shape) for path in made.average.paths})
    teacher = made.average.model(average, {})
    image = jax.tree.map(lambda x: x[:, 0], batch(0).fields["global"])
    assert teacher.encode_image(image).pooled.shape == (8, 12)
    with pytest.raises(AttributeError, match="text"):
        teacher.encode_text(batch(0).text)


@pytest.mark.slow
def test_centers_are_not_trained():
    made = program()
    heads = {path for path in made.shapes if path.startswith("heads/")}
    assert heads - set(made.trainable) == CENTERS
    state = jax.eval_shape(made.init_state, unflatten(made.shapes))
    moments = jax.tree_util.tree_leaves_with_path(state.optimizer)
    names = [jax.tree_util.keystr(path) for path, _ in moments]
    assert any("prototypes" in name for name in names)
    assert not any("center" in name for name in names)
    for path in heads - CENTERS:
        assert not np.array_equal(run()[-1][0][path], run()[0][0][path]), path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objectives", "accumulate"),
    [(BOTH, 1), pytest.param(SILC, 2, marks=pytest.mark.slow)],
    ids=["1", "2"],
)
def test_the_center_is_the_running_mean_of_the_teachers_logits(objectives, accumulate):
    history = run(objectives=objectives, accumulate=accumulate)
    graphdef, sizes = abstract_model(SMALL)[0], OBJECTIVE.head(SMALL, Compute(), rngs=nnx.Rngs(0))
    center = np.float64(history[0][0]["heads/silc/center"])
    for i in range(UPDATES):
        params, average, _ = history[i]
        average = unflatten({k: jnp.asarray(x) for k, x in (params | average).items()})
        teacher = nnx.merge(nnx.split(sizes)[0], average.pop("heads")["silc"])
        image = jax.tree.map(lambda x: x[:, 0], batch(i).fields["global"])
        pooled = jax.jit(SigLIP2.encode_image)(nnx.merge(graphdef, average), image).pooled
        logits = project(teacher, np.asarray(pooled)) @ directions(teacher)
        center = 0.9 * center + 0.1 * logits.mean(0)
        found = history[i + 1][0]["heads/silc/center"]
        np.testing.assert_allclose(found, center, rtol=0, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["loss/silc", "silc/teacher_entropy"])
def test_accumulated_losses_are_the_same(name):
    found, expected = run(objectives=SILC, accumulate=2)[1], run()[1]
    np.testing.assert_allclose(found[2][name], expected[2][name], rtol=1e-5)


@pytest.mark.slow
def test_accumulated_gradients_are_the_same():
    """But for `usage` and `rank`, which look at the examples of a part."""
    found, expected = run(objectives=SILC, accumulate=2), run(objectives=SILC)
    looks = ("silc/usage", "silc/rank")
    found, expected = (
        [(*x, {k: v for k, v in y.items() if k not in looks}) for *x, y in history]
        for history in (found, expected)
    )
    assert_same(found, expected)


@pytest.mark.slow
def test_parts_of_a_batch_hide_other_patches():
    found, expected = run(accumulate=2)[1][2], run()[1][2]
    assert found["loss/masked"] != pytest.approx(expected["loss/masked"], rel=1e-4)
    assert found["loss/masked"] == pytest.approx(expected["loss/masked"], rel=0.3)


@pytest.mark.slow
def test_at_weight_0_nothing_is_left():
    off = tuple((name, dataclasses.replace(x, weight=0.0)) for name, x in BOTH)
    made = program((("sigmoid", Sigmoid()), *off))
    assert made.objectives.keys() == {"sigmoid"}
    assert not any(path.startswith("heads/") for path in made.shapes)
    assert program(SILC + off[:1]).shapes.keys() == program(SILC).shapes.keys()
