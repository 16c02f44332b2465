"""Recall of a whole set, against the plain recall of all scores."""

import inspect

import numpy as np
import pytest

from siglip2_jax.data.sources import Memory
from siglip2_jax.evals.retrieval import (
    Retrieval,
    embed_captions,
    embed_files,
    end_sentence,
    retrieval_metrics,
)
from siglip2_jax.testing import StandInEmbedder


def recall_at(scores: np.ndarray, partners: np.ndarray, k: int) -> float:
    """The share of rows with a partner among their k highest scores; ties count against a row."""
    best = np.where(partners, scores, -np.inf).max(axis=1, keepdims=True)
    ahead = ((scores >= best) & ~partners).sum(axis=1)
    return float(np.mean(ahead < k))


def unit(rng, count, width=6):
    rows = rng.standard_normal((count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def plain_metrics(images, texts, owner):
    scores, partners = images @ texts.T, np.arange(len(images))[:, None] == owner
    return {
        f"{way}@{k}": recall_at(*both, k)
        for k in (1, 5, 10)
        for way, both in {
            "image_to_text": (scores, partners),
            "text_to_image": (scores.T, partners.T),
        }.items()
    }


def test_metrics_are_shares_of_ranks():
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(60), 3)
    images = unit(rng, 60)
    texts = unit(rng, 180) + images[owner]
    found = retrieval_metrics(images, texts, owner)
    assert found == plain_metrics(images, texts, owner)
    assert 0 < found["text_to_image@1"] < found["image_to_text@1"] < found["image_to_text@10"] <= 1


def held_out(rng, count=20):
    """Examples with one to three captions each; some are those of other photos."""
    return tuple(
        {
            "image": bytes([i]),
            "captions": tuple(f"Caption {i % 15} {j}." for j in range(rng.integers(1, 4))),
            "name": f"{i}",
        }
        for i in range(count)
    )


class Counting(StandInEmbedder):
    """Notes which texts it is asked for, and how many photos it has been handed."""

    def embed_texts(self, texts, **options):
        self.texts = list(texts)
        return super().embed_texts(texts, **options)

    def embed_images(self, images, **options):
        assert iter(images) is images  # one by one, not a list of all bytes
        return super().embed_images(images, **options)


@pytest.mark.parametrize("count", [None, 12, 99])
@pytest.mark.parametrize("full_stop", ["keep", "remove"])
def test_every_caption_is_in_the_pool(count, full_stop):
    rng = np.random.default_rng(0)
    chosen = held_out(rng)
    images = {x["image"]: row for x, row in zip(chosen, unit(rng, 20), strict=True)}
    captions = dict.fromkeys(
        caption.rstrip("." if full_stop == "remove" else "")
        for x in chosen
        for caption in x["captions"]
    )
    texts = dict(zip(captions, unit(rng, len(captions)), strict=True))
    model = Counting(images, texts)
    evaluator = Retrieval(
        source=Memory(chosen), name="val", every=7, count=count, max_num_patches=36,
        full_stop=full_stop,
    )  # fmt: skip
    found = evaluator(model)
    assert model.budgets == [36] and len(set(model.texts)) == len(model.texts)
    used = chosen[:count]
    pool = [
        (i, texts[caption.rstrip("." if full_stop == "remove" else "")])
        for i, x in enumerate(used)
        for caption in x["captions"]
    ]
    owner, rows = zip(*pool, strict=True)
    rows = np.stack(rows)
    assert found == plain_metrics(
        np.stack([images[x["image"]] for x in used]), rows, np.array(owner)
    )


def test_ties_are_as_the_evaluator_says():
    """A model that gives all the same: nothing, half of the places, and what stands first."""
    chosen = [{"image": bytes([i]), "captions": (f"{i}",), "name": f"{i}"} for i in range(4)]
    same = np.array([1.0, 0.0])
    model = StandInEmbedder({x["image"]: same for x in chosen}, {f"{i}": same for i in range(4)})
    found = {
        ties: Retrieval(source=Memory(tuple(chosen)), ties=ties)(model)
        for ties in ("against", "half", "first")
    }
    for way in ("image_to_text", "text_to_image"):
        assert [found[ties][f"{way}@1"] for ties in found] == [0, 0, 0.25]
        assert [found[ties][f"{way}@5"] for ties in found] == [1, 1, 1]


def test_an_unreadable_photo_and_its_captions_are_wrong():
    rows = np.eye(3, dtype=np.float32)
    chosen = [{"image": bytes([i]), "captions": (f"{i}",), "name": f"{i}"} for i in range(3)]
    images = {bytes([i]): rows[i] for i in range(3)}
    texts = {f"{i}": rows[i] for i in range(3)}
    evaluator = Retrieval(source=Memory(tuple(chosen)))
    assert set(evaluator(StandInEmbedder(images, texts)).values()) == {1.0}
    images[bytes([1])] = np.full(3, np.nan)
    # At 10 of 3 too: there is nothing to find it by.
    assert set(evaluator(StandInEmbedder(images, texts)).values()) == {2 / 3}


def test_a_set_without_captions_is_refused():
    source = Memory(({"image": b"0", "captions": (), "name": "0"},))
    with pytest.raises(ValueError, match="evaluator 'retrieval': none of its 1 examples has a cap"):
        Retrieval(source=source)(StandInEmbedder({b"0": np.ones(2)}, {}))


def test_full_stops():
    texts = ("A dog", "A dog. ", "A dog!", "Etc...", "狗。", "कुत्ता।", "¿Un perro?", "")
    assert [end_sentence(text, "keep") for text in texts] == list(texts)
    assert [end_sentence(text, "add") for text in texts] == [
        "A dog.", "A dog.", "A dog!", "Etc...", "狗。", "कुत्ता।", "¿Un perro?", "."
    ]  # fmt: skip
    assert [end_sentence(text, "remove") for text in texts] == [
        "A dog", "A dog", "A dog!", "Etc", "狗", "कुत्ता", "¿Un perro?", ""
    ]  # fmt: skip
    with pytest.raises(ValueError, match="full_stop is .yes.; expected 'keep', 'add' or 'remove'"):
        inspect.unwrap(end_sentence)("A dog", "yes")


def test_captions_that_a_full_stop_makes_equal_are_embedded_once():
    model = Counting({}, {"a dog.": np.array([1, 0]), "a cat.": np.array([0, 1])})
    rows = embed_captions(model, ["a dog", "a cat.", "a dog."], "add")
    assert model.texts == ["a dog.", "a cat."]
    np.testing.assert_array_equal(rows, [[1, 0], [0, 1], [1, 0]])


def test_a_wrong_directory_is_named(tmp_path):
    missing = str(tmp_path / "1.jpg")
    with pytest.raises(ValueError, match="1.jpg: no such image, the first of 2; expected the data"):
        embed_files(StandInEmbedder({}, {}), [missing, missing], 256)
