"""Self-distillation against float64 NumPy; what it may not change."""

import copy
import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from objectives.samples import (
    SIZES,
    SMALL,
    B,
    V,
    batch,
    matched,
    measure,
    participation,
    scene,
    view,
)

from siglip2_jax.models.compute import Compute
from siglip2_jax.models.flops import vision_flops
from siglip2_jax.models.siglip2 import SigLIP2
from siglip2_jax.objectives.masked import MaskedPrediction
from siglip2_jax.objectives.self_distill import SelfDistill

OBJECTIVE = SelfDistill(weight=0.25, chunk=12, **SIZES)


def features(shown):
    """The student's of each local view, passed alone, and the teacher's of the global one."""
    local, seen = shown.batch.fields["local"], shown.batch.fields["global"]
    encode = jax.jit(lambda model, image: model.encode_image(image).pooled)
    one = lambda views, v: jax.tree.map(lambda x: x[:, v], views)  # noqa: E731
    student = [encode(shown.student, one(local, v)) for v in range(V)]
    return np.stack(student, axis=1), np.asarray(encode(shown.teacher, one(seen, 0)))


@pytest.mark.slow
def test_loss_report_and_center():
    shown = scene(OBJECTIVE)
    loss, report, center, _ = measure(shown)
    heads = shown.student_head, shown.teacher_head
    expected = matched(heads, *features(shown), np.full((B, V), 1 / (B * V)))
    found = loss, report["teacher_entropy"], report["usage"], center
    for have, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-6)
    pooled = shown.student.encode_image(shown.batch.image).pooled
    np.testing.assert_allclose(report["rank"], participation(np.asarray(pooled)), rtol=1e-5)
    assert report.keys() == {"teacher_entropy", "usage", "rank"}


@pytest.mark.parametrize("path", [("prototypes", "kernel"), ("fc3", "bias"), ("fc1", "kernel")])
@pytest.mark.slow
def test_gradients_of_the_head(path):
    """By central differences of the float64 loss."""
    shown = scene(OBJECTIVE)
    layer, name = path
    found = measure(shown)[3]["student_head"][layer][name]
    seen, weights = features(shown), np.full((B, V), 1 / (B * V))
    moved = copy.deepcopy(shown.student_head)
    values = np.float64(getattr(getattr(moved, layer), name)[...])
    setattr(getattr(moved, layer), name, {...: values})  # NumPy reads it by [...]
    wanted = np.zeros_like(values)
    for index in np.ndindex(values.shape):
        for step in (1e-6, -2e-6):
            values[index] += step
            sign = 1 if step > 0 else -1
            loss = matched((moved, shown.teacher_head), *seen, weights)[0]
            wanted[index] += sign * loss / 2e-6
        values[index] += 1e-6
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * abs(wanted).max())


@pytest.mark.slow
def test_only_the_student_has_gradients():
    grads = measure(scene(OBJECTIVE))[3]
    for part in ("teacher", "teacher_head"):
        assert not any(np.any(x) for x in jax.tree.leaves(grads[part])), part
    assert all(np.any(x) for x in jax.tree.leaves(grads["student"]["vision"]["encoder"]))
    center = grads["student_head"].pop("center")
    assert not np.any(center)
    assert all(np.any(x) for x in jax.tree.leaves(grads["student_head"]))
    text = {k: x for k, x in grads["student"].items() if k != "vision"}
    assert not any(np.any(x) for x in jax.tree.leaves(text))


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1, 2])
def test_views_in_several_passes(at_once):
    several = dataclasses.replace(OBJECTIVE, views_at_once=at_once)
    assert_same(measure(scene(several)), measure(scene(OBJECTIVE)))


@pytest.mark.slow
def test_padding_changes_nothing():
    assert_same(measure(scene(OBJECTIVE, fill=np.nan)), measure(scene(OBJECTIVE)))


def assert_same(found, expected):
    for have, want in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(have, want, rtol=0, atol=2e-6 * max(1, np.max(abs(want))))


@pytest.mark.slow
def test_one_pass_of_the_teacher_serves_all(monkeypatch):
    encode, calls = SigLIP2.encode_image, []

    def counted(self, image, *masks):
        calls.append(self)
        return encode(self, image, *masks)

    monkeypatch.setattr(SigLIP2, "encode_image", counted)
    seen, teachers = {}, []

    def both():
        shown, other = scene(OBJECTIVE), scene(MaskedPrediction(weight=0.1, **SIZES))
        other = dataclasses.replace(other, teacher=shown.teacher, batch=shown.batch)
        teachers.append(shown.teacher)
        losses = [x.objective.loss(x.student_head, view(x, seen))[0] for x in (shown, other)]
        return sum(losses)

    jax.make_jaxpr(both)()
    assert [model is teachers[0] for model in calls].count(True) == 1
    assert seen.keys() == {"global"}


def test_flops():
    """Three times the student's passes forward, once the teacher's."""
    projection = 2 * (12 * 8 + 8 * 8 + 8 * 4 + 4 * 16)
    local, seen = vision_flops(SMALL.vision, 6), vision_flops(SMALL.vision, 9)
    expected = B * (3 * V * (local + projection) + seen + projection)
    assert OBJECTIVE.flops(SMALL, batch()) == expected
    shapes = jax.eval_shape(batch)
    assert OBJECTIVE.flops(SMALL, shapes) == expected


def test_what_is_missing_is_said():
    shown = scene(OBJECTIVE)
    seen = view(shown)
    with pytest.raises(ValueError, match="SelfDistill learns from a moving average .* optim.ema"):
        OBJECTIVE.loss(shown.student_head, dataclasses.replace(seen, teacher=None))
    bare = dataclasses.replace(shown.batch, fields={"global": shown.batch.fields["global"]})
    with pytest.raises(
        ValueError, match="SelfDistill reads the views local, .*SelfSupervisedViews"
    ):
        OBJECTIVE.loss(shown.student_head, dataclasses.replace(seen, batch=bare))
    odd = dataclasses.replace(OBJECTIVE, views_at_once=3)
    with pytest.raises(ValueError, match="views_at_once is 3, which does not divide the 4 local"):
        odd.loss(shown.student_head, seen)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("prototypes", 1, "SelfDistill.prototypes must be at least 2, got 1"),
        ("hidden", 0, "SelfDistill.hidden must be at least 1, got 0"),
        ("chunk", 0, "SelfDistill.chunk must be at least 1, got 0"),
        ("views_at_once", 0, "SelfDistill.views_at_once must be at least 1 or None, got 0"),
        ("teacher_temperature", 0.0, "temperatures must be above 0, got 0.1 .* and 0.0"),
        ("center_momentum", 1.5, "center_momentum must be from 0 to 1, got 1.5"),
    ],
)
def test_options_are_checked(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(OBJECTIVE, **{field: value})


def test_head_is_of_the_sizes_asked_for():
    made = nnx.eval_shape(lambda: SelfDistill(weight=1.0).head(SMALL, Compute(), rngs=nnx.Rngs(0)))
    shapes = {k: x.shape for k, x in nnx.to_flat_state(nnx.state(made))}
    assert shapes[("prototypes", "kernel")] == (256, 65_536)
    assert shapes[("fc1", "kernel")] == (12, 2048) and shapes[("fc2", "kernel")] == (2048, 2048)
    assert shapes[("fc3", "kernel")] == (2048, 256) and shapes[("center",)] == (65_536,)
