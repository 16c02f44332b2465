"""Captions that were exchanged: whose, how many, and that they can be told in a batch."""

import collections

import numpy as np
import pytest
from data.samples import example, preparation

from siglip2_jax.data.collate import blank_row, collate
from siglip2_jax.data.mismatched import MarkMismatched, Mismatched
from siglip2_jax.data.sources import Folder, Memory
from siglip2_jax.demo import HERE

SOURCE = Memory(tuple(example(i) for i in range(40)))


def exchanged(opened) -> dict[int, int]:
    """Examples with another's captions, and whose those are."""
    whose = {row["captions"]: i for i, row in enumerate(SOURCE.examples)}
    owners = {i: whose[opened[i]["captions"]] for i in range(len(opened))}
    return {i: owner for i, owner in owners.items() if i != owner}


@pytest.mark.parametrize(("share", "count"), [(0.3, 12), (1.0, 40), (0.01, 2)])
def test_so_many_have_each_others_captions(share, count):
    opened = Mismatched(SOURCE, share).open()
    others = exchanged(opened)
    assert len(opened) == 40 and len(others) == count
    assert sorted(others) == sorted(others.values())
    for i, row in enumerate(SOURCE.examples):
        assert opened[i]["mismatched"] == (i in others)
        assert {**opened[i], "captions": row["captions"]} == {**row, "mismatched": i in others}


def test_the_draw_is_of_the_seed_alone():
    first, again, other = (exchanged(Mismatched(SOURCE, 0.3, x).open()) for x in (0, 0, 1))
    assert first == again != other


def test_images_of_others_are_not_read(monkeypatch):
    """A folder tells captions without them."""
    source = Folder(str(HERE), captions="examples.jsonl", images="photos")
    plain, opened = source.open(), Mismatched(source, 1.0).open()
    read = []
    monkeypatch.setattr(type(plain), "__getitem__", lambda self, i: read.append(i) or {"image": i})
    row = opened[7]
    assert read == [7] and row["image"] == 7 and len(row["captions"]) == 5
    counts = collections.Counter(opened[i]["captions"] for i in range(len(opened)))
    monkeypatch.undo()
    assert counts == collections.Counter(plain[i]["captions"] for i in range(len(plain)))


def test_a_batch_tells_them():
    prepare, opened = preparation(MarkMismatched()), Mismatched(SOURCE, 0.5).open()
    rng = np.random.default_rng(0)
    batch = collate([prepare(opened[i], rng, 9) for i in range(40)], 9)
    marks = batch.fields["mismatched"]
    assert marks.dtype == np.float32 and set(np.flatnonzero(marks)) == set(exchanged(opened))
    plain = collate([prepare(SOURCE.examples[0], rng, 9)], 9)
    assert not plain.fields["mismatched"].any()
    blank = blank_row(prepare.preprocess, 12, prepare.transforms, 9)
    assert blank.fields["mismatched"].shape == (1,)


def test_what_cannot_be_exchanged_is_refused():
    with pytest.raises(ValueError, match="share must be above 0 and at most 1, got 1.5"):
        Mismatched(SOURCE, 1.5)
    with pytest.raises(ValueError, match="1 example cannot have another's captions; give at least"):
        Mismatched(Memory(SOURCE.examples[:1])).open()
