"""Recall among a set, against loops in plain Python."""

import numpy as np
import pytest
from evals.stand_in import Given

from siglip2_jax.data.sources import Memory
from siglip2_jax.evals.base import Evaluator
from siglip2_jax.evals.contrastive import ContrastiveAccuracy, recall_at


def plain_recall(scores, partners, k):
    """A row counts if the best of its partners is among its k highest, ties lost."""
    found = 0
    for row, own in zip(scores, partners, strict=True):
        best = max(score for score, mine in zip(row, own, strict=True) if mine)
        others = [score for score, mine in zip(row, own, strict=True) if not mine]
        found += len([score for score in others if score >= best]) < k
    return found / len(scores)


@pytest.mark.parametrize("levels", [3, 1000])
@pytest.mark.parametrize("k", [1, 5, 10])
def test_recall_is_that_of_a_loop(levels, k):
    rng = np.random.default_rng(k)
    scores = rng.integers(0, levels, (40, 200)).astype(np.float32)  # few levels: many ties
    partners = np.arange(40)[:, None] == np.arange(200) // 5
    assert recall_at(scores, partners, k) == pytest.approx(
        plain_recall(scores.tolist(), partners.tolist(), k), abs=1e-12
    )


def test_ties_count_against_a_row():
    own = np.eye(4, dtype=bool)
    assert recall_at(np.ones((4, 4), np.float32), own, 1) == 0  # a collapsed model knows nothing
    assert recall_at(np.ones((4, 4), np.float32), own, 3) == 0
    assert recall_at(np.ones((4, 4), np.float32), own, 4) == 1
    # Partners do not stand in each other's way.
    assert recall_at(np.float32([[1, 1, 0]]), np.array([[True, True, False]]), 1) == 1


def examples(count, rng):
    """Examples with one to three captions each."""
    return tuple(
        {
            "image": bytes([i]),
            "captions": tuple(f"{i} {j}" for j in range(rng.integers(1, 4))),
            "name": f"{i}",
        }
        for i in range(count)
    )


def unit(rng):
    row = rng.standard_normal(6)
    return row / np.linalg.norm(row)


@pytest.mark.parametrize("count", [None, 12, 99])
def test_every_caption_is_in_the_pool(count):
    rng = np.random.default_rng(0)
    chosen = examples(20, rng)
    images = {x["image"]: unit(rng) for x in chosen}
    texts = {caption: unit(rng) for x in chosen for caption in x["captions"]}
    model = Given(images, texts)
    evaluator = ContrastiveAccuracy(
        source=Memory(chosen), name="held_out", every=7, count=count, max_num_patches=36
    )
    assert isinstance(evaluator, Evaluator)
    found = evaluator(model)
    assert model.budgets == [36]
    used = chosen[:count]
    captions = [(i, caption) for i, x in enumerate(used) for caption in x["captions"]]
    scores = [[float(images[x["image"]] @ texts[c]) for _, c in captions] for x in used]
    own = [[owner == i for owner, _ in captions] for i in range(len(used))]
    for k in (1, 5, 10):
        to_text, to_image = (f"{way}@{k}" for way in ("image_to_text", "text_to_image"))
        assert found.pop(to_text) == pytest.approx(plain_recall(scores, own, k))
        transposed = list(zip(*scores, strict=True)), list(zip(*own, strict=True))
        assert found.pop(to_image) == pytest.approx(plain_recall(*transposed, k))
    assert not found


def test_an_unreadable_image_counts_as_wrong():
    chosen = examples(3, np.random.default_rng(0))
    rows = np.eye(3)
    texts = {c: rows[i] for i, x in enumerate(chosen) for c in x["captions"]}
    images = {x["image"]: row for x, row in zip(chosen, rows, strict=True)}
    evaluator = ContrastiveAccuracy(source=Memory(chosen))
    assert evaluator(Given(images, texts))["image_to_text@1"] == 1
    images[chosen[1]["image"]] = np.full(3, np.nan)
    assert evaluator(Given(images, texts))["image_to_text@1"] == pytest.approx(2 / 3)
