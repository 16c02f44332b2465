"""Masked prediction against float64 NumPy: which patches are hidden, and what is made of them."""

import dataclasses
from math import comb
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from objectives.samples import (
    SIZES,
    SMALL,
    batch,
    directions,
    matched,
    measure,
    participation,
    project,
    scene,
    view,
)

from siglip2_jax.models.flops import vision_flops
from siglip2_jax.objectives.masked import MaskedPrediction, choose_patches
from siglip2_jax.sharding import make_mesh, put_batch

OBJECTIVE = MaskedPrediction(weight=0.0625, chunk=12, **SIZES)
ALL = dataclasses.replace(OBJECTIVE, targets="all")


def some_valid(rows: int = 64, patches: int = 11) -> np.ndarray:
    """Any number of valid patches, none too, anywhere."""
    rng = np.random.default_rng(0)
    return rng.random((rows, patches)) < np.linspace(0, 1, rows)[:, None]


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75, 1.0])
def test_hidden_patches(ratio):
    valid = some_valid()
    masked, positions, weights = (
        np.asarray(x) for x in choose_patches(jnp.asarray(valid), ratio, jax.random.key(0))
    )
    assert not (masked & ~valid).any()
    counts = masked.sum(1)
    np.testing.assert_array_equal(counts, np.round(ratio * valid.sum(1)))
    assert positions.shape == weights.shape == (64, int(np.ceil(ratio * 11)))
    for row in range(64):
        kept = weights[row] > 0
        assert set(positions[row][kept]) == set(np.flatnonzero(masked[row]))
        assert kept.sum() == counts[row]
        np.testing.assert_allclose(weights[row][kept], 1 / max(counts[row], 1) / 64, rtol=1e-6)


def test_every_set_of_patches_is_as_likely():
    valid = jnp.asarray([[True, False, True, True, True, True]] * 2000)
    masked = np.asarray(choose_patches(valid, 0.5, jax.random.key(1))[0])
    sets, counts = np.unique(masked, axis=0, return_counts=True)
    assert len(sets) == comb(5, 2)  # round(2.5) is 2
    deviation = np.sqrt(2000 * 0.1 * 0.9)
    assert abs(counts - 200).max() < 4 * deviation


def test_hidden_patches_are_the_same_on_many_devices():
    valid, key = some_valid(16), jax.random.key(2)
    expected = choose_patches(jnp.asarray(valid), 0.5, key)
    mesh = make_mesh(2, jax.devices()[:4])
    with jax.set_mesh(mesh):
        placed = put_batch(valid, mesh)
        found = jax.jit(choose_patches, static_argnums=1)(placed, 0.5, key)
        assert all(x.sharding.is_equivalent_to(placed.sharding, 2) for x in found)
    for have, want in zip(found, expected, strict=True):
        np.testing.assert_array_equal(have, want)


def tokens(shown):
    """Hidden patches, tokens of the student that does not see them, and the teacher's."""
    image = jax.tree.map(lambda x: x[:, 0], shown.batch.fields["global"])
    masked = choose_patches(image.valid, 0.5, shown.key)[0]
    student = shown.student.encode_image(image, masked, shown.student_head.mask_token[...])
    teacher = shown.teacher.encode_image(image)
    return np.asarray(masked), np.asarray(student.tokens), np.asarray(teacher.tokens)


@pytest.mark.slow
def test_loss_report_and_center():
    """All hidden patches in one list, each with the weight that makes the mean of means."""
    shown = scene(OBJECTIVE)
    loss, report, center, _ = measure(shown)
    masked, student, teacher = tokens(shown)
    counts = masked.sum(1)
    np.testing.assert_array_equal(counts, [3, 3, 4, 0, 2, 2, 2, 4])  # the fourth has one patch
    weights = np.concatenate([np.full(n, 1 / (8 * n)) for n in counts if n])[:, None]
    heads = shown.student_head.projection, shown.teacher_head.projection
    expected = matched(heads, student[masked][:, None], teacher[masked], weights)
    found = loss, report["teacher_entropy"], report["usage"], center
    for have, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-6)
    image = jax.tree.map(lambda x: x[:, 0], shown.batch.fields["global"])
    first = np.asarray(choose_patches(image.valid, 0.5, shown.key)[1])[:, 0]
    one_each = student[np.arange(8), first]
    np.testing.assert_allclose(report["rank"], participation(one_each), rtol=1e-4)


@pytest.mark.slow
def test_a_center_over_all_patches():
    """The center is of all logits of the teacher, and images weigh alike. All else is the same."""
    shown = scene(OBJECTIVE)
    every = dataclasses.replace(shown, objective=dataclasses.replace(OBJECTIVE, center="all"))
    loss, report, before, _ = measure(shown)
    found, again, center, _ = measure(every)
    assert (found, again) == (loss, report)
    head = shown.teacher_head.projection
    valid = np.asarray(shown.batch.fields["global"].valid[:, 0])
    logits = project(head, tokens(shown)[2]) @ directions(head)
    mean = np.mean([x[there].mean(0) for x, there in zip(logits, valid, strict=True)], axis=0)
    start = np.float64(shown.student_head.projection.center[...])
    np.testing.assert_allclose(center, 0.9 * start + 0.1 * mean, rtol=1e-5, atol=1e-6)
    assert np.abs(center - before).max() > 1e-3
    extra = 9 * 2 * (12 * 8 + 8 * 8 + 8 * 4)  # the teacher's head at all patches
    assert every.objective.flops(SMALL, batch()) == OBJECTIVE.flops(SMALL, batch()) + 8 * extra


def means_of_all(shown) -> tuple[np.ndarray, np.ndarray]:
    """Validity of patches, and the weights of their mean over an image, then over images."""
    valid = np.asarray(shown.batch.fields["global"].valid[:, 0])
    return valid, (valid / valid.sum(1, keepdims=True) / 8)[valid][:, None]


@pytest.mark.slow
def test_loss_over_all_patches():
    """Visible patches count as hidden ones do, and what is hidden is the same."""
    shown = scene(ALL)
    loss, report, center, _ = measure(shown)
    masked, student, teacher = tokens(shown)
    valid, weights = means_of_all(shown)
    assert 0 < masked.sum() < valid.sum() < valid.size
    heads = shown.student_head.projection, shown.teacher_head.projection
    expected = matched(heads, student[valid][:, None], teacher[valid], weights)
    found = loss, report["teacher_entropy"], report["usage"], center
    for have, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-6)
    assert abs(loss - measure(scene(OBJECTIVE))[0]) > 1e-3


def differences(loss, x: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Derivatives of a loss by every entry of a float64 array, by central differences."""
    found = np.empty_like(x)
    for i in np.ndindex(x.shape):
        moved = x.copy()
        moved[i] += step
        above = loss(moved)
        moved[i] -= 2 * step
        found[i] = (above - loss(moved)) / (2 * step)
    return found


@pytest.mark.slow
def test_gradients_over_all_patches():
    """Through the head, and through the tower by the derivatives of its tokens."""
    shown = scene(ALL)
    grads = measure(shown)[3]
    masked, student, teacher = tokens(shown)
    valid, weights = means_of_all(shown)
    other = shown.teacher_head.projection

    def loss(student: np.ndarray, head) -> float:
        return matched((head, other), student[:, None], teacher[valid], weights)[0]

    head = shown.student_head.projection
    by_tokens = differences(lambda x: loss(x, head), np.float64(student[valid]))
    rows = np.zeros_like(student)
    rows[valid] = by_tokens
    assert np.abs(rows[valid & ~masked]).max() > 1e-4 < np.abs(rows[masked]).max()
    image = jax.tree.map(lambda x: x[:, 0], shown.batch.fields["global"])
    graphdef, state = nnx.split(shown.student)

    def encode(params, mask_token):
        student = nnx.merge(graphdef, params)
        return student.encode_image(image, jnp.asarray(masked), mask_token).tokens

    params, mask_token = nnx.to_pure_dict(state), shown.student_head.mask_token[...]
    expected = jax.jit(lambda *x: jax.vjp(encode, *x)[1](jnp.asarray(rows)))(params, mask_token)
    found = grads["student"], grads["student_head"]["mask_token"]
    for have, want in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-3, atol=2e-6)

    def with_bias(bias: np.ndarray) -> float:
        last = SimpleNamespace(kernel=head.fc3.kernel, bias=bias)
        changed = {x: getattr(head, x) for x in ("fc1", "fc2", "prototypes", "center")}
        return loss(student[valid], SimpleNamespace(**changed, fc3=last))

    by_bias = differences(with_bias, np.float64(head.fc3.bias[...]))
    np.testing.assert_allclose(
        grads["student_head"]["projection"]["fc3"]["bias"], by_bias, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("field", ["targets", "center"])
def test_kinds_of_patches_are_checked(field):
    with pytest.raises((ValueError, TypeError), match=field):  # the type checker may be faster
        dataclasses.replace(OBJECTIVE, **{field: "none"})


@pytest.mark.slow
def test_only_the_student_has_gradients():
    grads = measure(scene(OBJECTIVE))[3]
    for part in ("teacher", "teacher_head"):
        assert not any(np.any(x) for x in jax.tree.leaves(grads[part])), part
    assert not np.any(grads["student_head"]["projection"].pop("center"))
    assert all(np.any(x) for x in jax.tree.leaves(grads["student_head"]))
    vision = grads["student"].pop("vision")
    assert all(np.any(x) for x in jax.tree.leaves(vision["encoder"]))
    assert not any(np.any(x) for x in jax.tree.leaves((vision["pool"], grads["student"])))


@pytest.mark.slow
def test_padding_changes_nothing():
    found, expected = measure(scene(OBJECTIVE, fill=np.nan)), measure(scene(OBJECTIVE))
    for have, want in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(have, want, rtol=0, atol=2e-6 * max(1, np.max(abs(want))))


@pytest.mark.slow
def test_a_hidden_patch_is_not_seen():
    """Other pixels under the mask change the teacher's features and none of the student's."""
    shown = scene(OBJECTIVE)
    image = jax.tree.map(lambda x: x[:, 0], shown.batch.fields["global"])
    masked, student, teacher = tokens(shown)
    pixels = np.where(masked[..., None], -image.pixels, image.pixels)[:, None]
    views = dataclasses.replace(shown.batch.fields["global"], pixels=jnp.asarray(pixels))
    changed = dataclasses.replace(
        shown, batch=dataclasses.replace(shown.batch, fields={"global": views})
    )
    _, student_again, teacher_again = tokens(changed)
    np.testing.assert_array_equal(student_again, student)
    assert abs(teacher_again - teacher)[masked].max() > 0.1


@pytest.mark.slow
def test_each_key_hides_others():
    one, other = scene(OBJECTIVE), dataclasses.replace(scene(OBJECTIVE), key=jax.random.key(6))
    assert measure(one)[0] == measure(scene(OBJECTIVE))[0] != measure(other)[0]


def test_flops():
    """Three times the student's pass, and its heads at 5 of 9 patches; the teacher's heads once."""
    projection = 2 * (12 * 8 + 8 * 8 + 8 * 4 + 4 * 16)
    expected = 8 * (3 * vision_flops(SMALL.vision, 9) + 4 * 5 * projection)
    assert OBJECTIVE.flops(SMALL, batch()) == expected
    for objective in (ALL, dataclasses.replace(ALL, center="all")):
        assert objective.flops(SMALL, batch()) == expected + 8 * 4 * 4 * projection


@pytest.mark.slow
def test_what_is_missing_is_said():
    shown = scene(OBJECTIVE)
    seen = view(shown)
    with pytest.raises(ValueError, match="MaskedPrediction learns from a moving average"):
        OBJECTIVE.loss(shown.student_head, dataclasses.replace(seen, teacher=None))
    bare = dataclasses.replace(shown.batch, fields={})
    with pytest.raises(ValueError, match="MaskedPrediction reads the views global, .* lacks"):
        OBJECTIVE.loss(shown.student_head, dataclasses.replace(seen, batch=bare))


@pytest.mark.parametrize("ratio", [0.0, 1.1])
def test_options_are_checked(ratio):
    with pytest.raises(ValueError, match="ratio must be above 0 and at most 1, got"):
        dataclasses.replace(OBJECTIVE, ratio=ratio)
