"""Curated batches: the step trains on what was chosen, the teacher is read and never saved."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train.runs import SMALL, Sevens, numbers, run, save_run, stage
from xla import QUICK

from siglip2_jax.config import Continue, Curation, Optim, Pretrained, Schedule
from siglip2_jax.curation.selector import recut
from siglip2_jax.models.flops import forward_flops
from siglip2_jax.models.siglip2 import flatten, unflatten
from siglip2_jax.objectives.base import Objective
from siglip2_jax.objectives.sigmoid import Sigmoid
from siglip2_jax.objectives.softmax_distill import SoftmaxDistill
from siglip2_jax.preprocess.patches import patchify
from siglip2_jax.sharding import device_put_global, make_mesh, param_shardings, put_batch
from siglip2_jax.testing import random_params
from siglip2_jax.train.checkpoint import RunCheckpoints, by_path
from siglip2_jax.train.inputs import stage_reading
from siglip2_jax.train.stage_steps import kept_steps
from siglip2_jax.train.start import abstract_state, initialize_stage, load_teacher_params
from siglip2_jax.train.step import Program
from siglip2_jax.types import Batch, Patches

SQUARE = dataclasses.replace(
    SMALL, vision=dataclasses.replace(SMALL.vision, patch_size=16, grid=2, image_size=32)
)
FINER = dataclasses.replace(
    SQUARE, vision=dataclasses.replace(SQUARE.vision, patch_size=8, grid=4, depth=1)
)
# A large eps: gradients that are 0 but for rounding would give random directions.
OPTIM = Optim(peak_lr=1e-2, eps=1e-3, schedule=Schedule(kind="constant"))
CURATION = Curation(teacher=Pretrained(source="nowhere"), model=FINER, chunks=4)


def config(**fields):
    defaults = {"optim": OPTIM, "curation": CURATION}
    return run(stage(**(defaults | fields)), model=SQUARE)


def images(count: int) -> np.ndarray:
    return np.random.default_rng(3).uniform(-1, 1, (count, 32, 32, 3)).astype(np.float32)


def patches(pixels: np.ndarray, size: int) -> Patches:
    side = pixels.shape[1] // size
    yx = np.stack(np.indices((side, side)), -1).reshape(1, -1, 2).repeat(len(pixels), 0)
    cut = np.stack([patchify(x, size) for x in pixels])
    return Patches(cut, yx.astype(np.int32), np.ones(yx.shape[:2], bool))


def super_batch() -> Batch:
    ids = np.random.default_rng(4).integers(0, 1024, (16, 64)).astype(np.int32)
    ids[:, 0] = np.arange(16)
    return Batch(patches(images(16), 16), ids)


def test_recut():
    """Patches of 16 cut into 8 and back are what the image gives."""
    coarse, fine = patches(images(3), 16), patches(images(3), 8)
    for found, wanted in (
        (recut(jax.tree.map(jnp.asarray, coarse), SQUARE, FINER), fine),
        (recut(jax.tree.map(jnp.asarray, fine), FINER, SQUARE), coarse),
    ):
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


def updated(program: Program, batch: Batch, *, devices: int = 1, step: int = 0):
    """Parameters and metrics after a step from random parameters."""
    mesh = make_mesh(1, jax.devices()[:devices])
    with jax.set_mesh(mesh):

        def known(model, shapes):
            shardings = param_shardings(mesh, shapes)
            leaves = flatten(random_params(model)).items()
            return unflatten({path: device_put_global(x, shardings[path]) for path, x in leaves})

        state = jax.jit(program.init_state)(known(SQUARE, program.shapes))
        state = dataclasses.replace(state, step=state.step + step)
        if program.selector is not None:
            state = dataclasses.replace(state, teacher_params=known(FINER, program.selector.shapes))
        update = jax.jit(program.step, compiler_options=QUICK)
        state, metrics = update(state, put_batch(batch, mesh))
        return numbers(state.params), {k: float(x) for k, x in metrics.items()}


@dataclasses.dataclass(frozen=True)
class Seen(Objective):
    """Reports which examples it is given, by the bits of their first ids; no loss."""

    weight: float = 1.0

    def loss(self, head, view):
        return jnp.float32(0), {"examples": jnp.exp2(view.batch.text[:, 0]).sum()}


LOSSES = {"sigmoid": Sigmoid(), "seen": Seen()}


@functools.cache
def curated() -> tuple[dict, dict]:
    """Parameters and metrics after a curated step on one device."""
    return updated(Program(config(objectives=LOSSES).resolved[0]), super_batch())


@pytest.mark.slow
def test_trains_on_the_chosen():
    """The step is an ordinary one on the same examples, picked out by hand."""
    found, metrics = curated()
    assert metrics["curation/chosen"] > metrics["curation/all"]
    bits = int(metrics["seen/examples"])
    chosen = [i for i in range(16) if bits >> i & 1]
    assert len(chosen) == 8
    part = jax.tree.map(lambda x: x[np.array(chosen)], super_batch())
    wanted, plain = updated(Program(config(objectives=LOSSES, curation=None).resolved[0]), part)
    assert metrics["loss"] == pytest.approx(plain["loss"], rel=1e-6)
    for path, x in wanted.items():
        np.testing.assert_allclose(found[path], x, atol=1e-6, err_msg=path)


@pytest.mark.slow
def test_four_devices_choose_and_train_alike():
    found, metrics = curated()
    program = Program(config(objectives=LOSSES).resolved[0])
    spread, four = updated(program, super_batch(), devices=4)
    assert four["seen/examples"] == metrics["seen/examples"]
    for path, x in spread.items():
        np.testing.assert_allclose(x, found[path], atol=1e-5, err_msg=path)


@pytest.mark.slow
def test_another_step_chooses_anew():
    """And the teacher's embeddings of what is chosen reach the objectives."""
    program = Program(config(objectives={"softmax": SoftmaxDistill(), "seen": Seen()}).resolved[0])
    _, first = updated(program, super_batch())
    _, second = updated(program, super_batch(), step=1)
    assert first["seen/examples"] != second["seen/examples"]
    assert first["softmax/divergence"] > 0


@pytest.mark.slow
def test_accumulated():
    """The chosen examples are split into microbatches, with the same update."""
    whole, _ = curated()
    split = config(objectives=LOSSES, optim=dataclasses.replace(OPTIM, accumulate=2))
    found, _ = updated(Program(split.resolved[0]), super_batch())
    for path, x in whole.items():
        np.testing.assert_allclose(found[path], x, atol=1e-5, err_msg=path)


def test_sizes():
    """A stage reads more than it trains on; FLOPs of both models' extra pass are counted."""
    made = config(curation=dataclasses.replace(CURATION, filter_ratio=0.75))
    (curated,) = made.resolved
    assert (curated.batch_size, curated.read_size) == (8, 32)
    assert [size for *_, size, _ in stage_reading(curated)] == [32] * 10
    program, plain = Program(made.resolved[0]), Program(config(curation=None).resolved[0])
    assert program.batch_size(32) == 8
    towers = forward_flops(SQUARE, 4) + forward_flops(FINER, 16)
    scores = 2 * 2 * 32 * 8 * (24 + 24)
    assert program.flops(4, 32) == plain.flops(4, 8) + 32 * towers + scores
    with pytest.raises(ValueError, match="filter_ratio is 1.0; it is the share that is left out"):
        Curation(teacher=Continue(stage="main"), filter_ratio=1.0)


@pytest.mark.parametrize(
    "part, changes, message",
    [
        ("vision", {"image_size": 48, "grid": 6}, "has image size 48 and the model 32"),
        ("text", {"vocab_size": 99}, "has vocabulary 99 and the model 1024"),
        ("text", {"length": 16}, "has text length 16 and the model 64"),
        ("vision", {"patch_size": 12, "grid": 2}, "patches of 12 do not fill images of 32 pixels"),
    ],
)
def test_teachers_that_read_something_else(part, changes, message):
    sizes = dataclasses.replace(getattr(FINER, part), **changes)
    teacher = dataclasses.replace(FINER, **{part: sizes})
    with pytest.raises(ValueError, match=f"stage 'main': .*{message}"):
        Program(config(curation=dataclasses.replace(CURATION, model=teacher)).resolved[0])


@pytest.mark.slow
def test_teacher_of_the_same_run(tmp_path):
    """The teacher comes from its stage's checkpoint, which is kept, and is saved in no other."""
    mesh = make_mesh(1, jax.devices()[:4])
    first = stage("first", 10)
    taught = Curation(teacher=Continue(stage="first", fraction=0.5))
    made = run(first, stage("second", 6, start=Continue(), curation=taught), model=SQUARE)
    assert kept_steps(made) == {5, 10, 16}
    saved = save_run(tmp_path, made, [5, 10, 12], mesh)
    program = Sevens(made.resolved[1])
    state = initialize_stage(program, made, mesh, tmp_path)
    like = abstract_state(program, mesh)
    for path, x in by_path(state.teacher_params).items():
        np.testing.assert_array_equal(x, by_path(saved[5].params)[path], err_msg=path)
        assert x.sharding.is_equivalent_to(by_path(like.teacher_params)[path].sharding, x.ndim)
    checkpoints = RunCheckpoints(tmp_path)
    assert not checkpoints.shapes(12, "teacher_params")
    assert checkpoints.restore(12, like).teacher_params is None
    again = load_teacher_params(program, made, mesh, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again, state.teacher_params)


def test_teacher_that_comes_later():
    taught = Curation(teacher=Continue(stage="second"))
    with pytest.raises(ValueError, match="'first' is the first and continues another one"):
        run(stage("first", curation=taught), stage("second"), model=SQUARE)
