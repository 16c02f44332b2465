"""Ranks in blocks, against a plain statement in float64."""

import inspect

import jax
import numpy as np
import pytest

from siglip2_jax.evals import recall
from siglip2_jax.evals.recall import NEVER, check_ties, compare, recall_ranks
from siglip2_jax.sharding import make_mesh

SMALL = {"image_block": 128, "text_block": 256}


def plain_ranks(images, texts, owner, ties="against"):
    """Loops over rows and columns of all scores, in float64."""
    scores = images.astype(np.float64) @ texts.astype(np.float64).T

    def rank(row, own):
        known = row[own][~np.isnan(row[own])]
        if not len(known):
            return NEVER
        if ties == "first":  # as a stable sort has it
            order = np.argsort(-row, kind="stable")
            return np.flatnonzero(own[order])[0]
        higher, equal = (row[~own] > known.max()).sum(), (row[~own] == known.max()).sum()
        return higher + (equal if ties == "against" else equal // 2)

    to_text = [rank(row, owner == i) for i, row in enumerate(scores)]
    to_image = [rank(column, np.arange(len(images)) == i)
                for i, column in zip(owner, scores.T, strict=True)]  # fmt: skip
    return to_text, to_image


def check(images, texts, owner, ties="against", **options):
    options["ties"] = ties
    found = recall_ranks(images.astype(np.float32), texts.astype(np.float32), owner, **options)
    with np.errstate(invalid="ignore"):
        wanted = plain_ranks(images, texts, owner, ties)
    np.testing.assert_array_equal(found.image_to_text, wanted[0])
    np.testing.assert_array_equal(found.text_to_image, wanted[1])
    return found


def unit(rng, count, width=24):
    rows = rng.standard_normal((count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("n, m", [(300, 700), (1, 5), (5, 1), (129, 513), (40, 90)])
def test_ranks_are_those_of_all_scores_at_once(n, m):
    rng = np.random.default_rng(n)
    images, texts = unit(rng, n), unit(rng, m)
    owner = rng.integers(0, n, m)  # several, one or no text each, in no order
    texts = texts + 0.8 * images[owner]  # so that ranks are low as well as high
    # Float32 rounds: what is compared here must be further apart than that.
    scores = np.sort(images.astype(np.float64) @ texts.astype(np.float64).T, axis=1)
    assert m == 1 or np.diff(scores).min() > 0
    found = check(images, texts, owner, **SMALL)
    assert n < 100 or (found.text_to_image == 0).sum() > 10 < (found.text_to_image > 0).sum()


@pytest.mark.parametrize("ties", ["against", "half", "first"])
@pytest.mark.parametrize("levels", [1, 2, 4])
def test_exact_ties(levels, ties):
    rng = np.random.default_rng(levels)
    # Sums of few eighths are exact in float32, and many pairs have the same.
    images, texts = (rng.integers(0, levels, (count, 5)) / 8 for count in (200, 600))
    owner = rng.integers(0, 200, 600)
    found = check(images, texts, owner, ties, **SMALL)
    check(images, texts, np.sort(owner), ties, **SMALL)
    if levels == 1:  # a model that knows nothing
        hits = {"against": 0, "half": 0, "first": 1}[ties]
        assert (found.image_to_text == 0).sum() == (np.sum(owner == owner[0]) > 0) * hits
        assert (found.text_to_image == 0).sum() == np.sum(owner == 0) * hits


def test_equal_embeddings_tie_wherever_they_stand():
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(300), 2)
    # A collapsed model: rounding must not tell pairs apart, in any place of any block.
    same = unit(rng, 1, width=37)
    found = recall_ranks(np.repeat(same, 300, 0), np.repeat(same, 600, 0), owner, **SMALL)
    assert (found.image_to_text == 598).all() and (found.text_to_image == 299).all()
    # One caption of every pair of photos is that of the other, too.
    images = unit(rng, 300, width=37)
    texts = images[owner].copy()
    texts[1::2] = texts[1::2][np.arange(300) // 2 * 2]
    swapped = images.copy()
    swapped[1::2] = images[::2]
    found = recall_ranks(swapped, texts[1::2].copy(), np.arange(300), **SMALL)
    assert (found.image_to_text == 1).all() and (found.text_to_image == 1).all()


def test_own_captions_do_not_stand_in_each_others_way():
    rows = np.eye(3, dtype=np.float32)
    found = recall_ranks(rows[:2], rows[[0, 0, 1, 2]], np.array([0, 0, 1, 1]))
    assert found.image_to_text.tolist() == [0, 0]
    # The last text is at a right angle to both photos: a tie.
    assert found.text_to_image.tolist() == [0, 0, 0, 1]


def test_unreadable_photos_are_never_found_and_hide_nobody():
    rng = np.random.default_rng(3)
    images, texts = unit(rng, 150), unit(rng, 450)
    owner = np.repeat(np.arange(150), 3)
    texts[owner == 140] = images[17]  # would be in the way of 17
    lost = [0, 99, 149]
    images[lost] = np.nan
    texts[7] = np.nan
    found = check(images, texts, owner, **SMALL)
    assert (found.image_to_text[lost] == NEVER).all()
    assert (found.text_to_image[np.isin(owner, lost)] == NEVER).all()
    assert (found.image_to_text != NEVER).sum() == 147
    kept = np.delete(np.arange(150), lost)
    texts_kept = ~np.isin(owner, lost) & (np.arange(450) != 7)
    ranks = recall_ranks(images[kept], texts, np.searchsorted(kept, owner).clip(max=146), **SMALL)
    np.testing.assert_array_equal(found.text_to_image[texts_kept], ranks.text_to_image[texts_kept])


def test_one_device_and_eight_agree_to_the_last_digit(monkeypatch):
    rng = np.random.default_rng(5)
    images = unit(rng, 260, width=64)
    # Scores within a few roundings of each other: any other order of summing would show.
    texts = (
        images[np.arange(2100) % 260] + rng.integers(-2, 3, (2100, 64)).astype(np.float32) / 2**23
    )
    owner = rng.permutation(np.arange(2100) % 260)
    seen = []
    monkeypatch.setattr(recall, "compare", lambda *x: seen.append(x[0].devices()) or compare(*x))
    options = {"image_block": 128, "text_block": 128}
    one = recall_ranks(images, texts, owner, devices=jax.devices()[:1], **options)
    assert len(set.union(*seen)) == 1
    with jax.set_mesh(make_mesh()):  # as in a training run
        eight = recall_ranks(images, texts, owner, **options)
    assert len(set.union(*seen)) == 8
    np.testing.assert_array_equal(one.image_to_text, eight.image_to_text)
    np.testing.assert_array_equal(one.text_to_image, eight.text_to_image)
    assert one.text_to_image.min() == 0


def test_only_blocks_are_in_memory(monkeypatch):
    seen = []
    monkeypatch.setattr(
        recall, "compare", lambda *x: seen.append(tuple(y.shape for y in x)) or compare(*x)
    )
    rng = np.random.default_rng(6)
    n, m = 1000, 2500
    recall_ranks(unit(rng, n), unit(rng, m), np.arange(m) * n // m, **SMALL)
    block = ((128, 24), (256, 24), (256,), (128,), (256,), (128,), (256,))
    # Where owners are in order, the first pass only visits blocks along the diagonal.
    assert set(seen) == {block} and 8 * 10 < len(seen) <= 8 * 10 + 8 + 10
    types = ("float32", "float32", "int32", "float32", "float32", "int32", "int32")
    program = compare.lower(*map(jax.ShapeDtypeStruct, block, types)).compile()
    memory = program.memory_analysis()
    scores = 128 * 256 * 4
    assert memory.temp_size_in_bytes < 4 * scores < n * m * 4 / 15
    assert memory.output_size_in_bytes < 4096


def test_short_sets_have_short_blocks(monkeypatch):
    shapes = set()
    monkeypatch.setattr(recall, "compare", lambda *x: shapes.add(x[0].shape) or compare(*x))
    rows = np.eye(130, dtype=np.float32)
    recall_ranks(rows, rows, np.arange(130))
    assert shapes == {(256, 130)}


def test_what_cannot_be_ranked():
    rows = np.eye(2, dtype=np.float32)
    with pytest.raises(
        ValueError, match="recall among 2 images and 0 texts; expected at least one"
    ):
        recall_ranks(rows, rows[:0], np.zeros(0, int))
    unchecked = inspect.unwrap(check_ties)  # the test suite's type checks would refuse it first
    with pytest.raises(ValueError, match="ties is 'last'; expected 'against', 'half' or 'first'"):
        unchecked("last")
    with pytest.raises(ValueError, match="texts belong to images 0 to 2; expected 0 to 1"):
        recall_ranks(rows, rows, np.array([0, 2]))
