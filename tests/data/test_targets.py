"""The decoder's targets, against the tokenizer and the texts they are made of."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from data.samples import example, preparation

from siglip2_jax.data.augment import HorizontalFlip
from siglip2_jax.data.boxes import BoxText
from siglip2_jax.data.prepare import ExampleError, Transform, collate
from siglip2_jax.data.targets import PREFIXES, DecoderTargets, Parsed, parse
from siglip2_jax.demo import TOKENIZER
from siglip2_jax.preprocess.tokenizer import Tokenizer, TokenizerError

PATH = str(TOKENIZER)
TARGETS = DecoderTargets(PATH)
REGIONS = [
    {"box": [0.1, 0.2, 0.5, 0.75], "phrase": "A red dog", "score": 0.9},
    {"box": [0.0, 0.0, 1.0, 0.5], "phrase": "a tree: green", "score": 0.3},
    {"box": [0.5, 0.5, 0.6, 0.6], "phrase": "a shadow", "score": 0.29},
]
DOG, TREE = (0.1, 0.2, 0.5, 0.75), (0.0, 0.0, 1.0, 0.5)


def blank(**fields):
    return {"text": "A dog by a Tree", "name": "blank", "budget": 4, "fields": {}, **fields}


def made(targets=TARGETS, seed=0, **fields):
    found = targets(blank(**fields), np.random.default_rng(seed))["fields"]
    assert found["targets"].dtype == found["prefix"].dtype == np.int32
    assert found["targets"].shape == (len(targets.tasks), targets.length)
    return found["targets"], found["prefix"]


def pieces(text):
    """The ids of a text by SentencePiece itself."""
    return Tokenizer.load(PATH)._processor.encode(text)


def test_sequences_are_prefix_and_rest_and_end():
    targets, prefix = made(regions=REGIONS[:1])
    texts = [
        ("cap:", " a dog by a tree"),
        ("aref:", " a red dog : 50 100 250 375"),
        ("gcap:", " 50 100 250 375 : a red dog"),
    ]
    for row, length, (head, rest) in zip(targets, prefix, texts, strict=True):
        wanted = [*pieces(head), *pieces(rest), 1]
        np.testing.assert_array_equal(row, wanted + [0] * (64 - len(wanted)))
        assert length == len(pieces(head)) and list(PREFIXES.values()).count(head) == 1
    assert [TARGETS.parse(row) for row in targets] == [
        ("caption", "a dog by a tree", None),
        ("refer", "a red dog", DOG),
        ("ground", "a red dog", DOG),
    ]


@pytest.mark.parametrize("regions", [None, [], REGIONS[2:]])
def test_without_a_region_only_the_caption_is_left(regions):
    targets, prefix = made(regions=regions)
    caption, length = made()
    np.testing.assert_array_equal(targets, caption)
    assert (targets[1:] == 0).all() and prefix.tolist() == length.tolist() == [length[0], 0, 0]
    assert TARGETS.parse(targets[1]) == (None, "", None)
    only = DecoderTargets(PATH, tasks=("ground",), min_score=0.29)
    assert only.parse(made(only, regions=REGIONS[2:])[0][0]).text == "a shadow"


def test_refer_and_ground_draw_regions_of_their_own():
    drawn = []
    for seed in range(400):
        targets, _ = made(seed=seed, regions=REGIONS)
        parsed = [TARGETS.parse(row) for row in targets[1:]]
        assert all(x[1:] in (("a red dog", DOG), ("a tree: green", TREE)) for x in parsed)
        drawn.append([x.box == DOG for x in parsed])
    counts = np.bincount(np.array(drawn) @ [2, 1], minlength=4)
    assert (abs(counts - 100) < 5 * np.sqrt(400 * 0.25 * 0.75)).all()


def test_the_generator_decides_and_pickles_are_the_same():
    again = pickle.loads(pickle.dumps(TARGETS))
    assert again == TARGETS and isinstance(again, Transform) and hash(again) == hash(TARGETS)
    assert again.tokenizer is TARGETS.tokenizer  # opened once
    for seed in range(5):
        np.testing.assert_array_equal(
            made(seed=seed, regions=REGIONS)[0], made(again, seed, regions=REGIONS)[0]
        )


def test_long_sequences_keep_their_end_mark():
    short = replace(TARGETS, length=12, pad_id=3)
    targets, prefix = made(short, text="dog " * 40, regions=REGIONS[:1])
    whole = [*pieces("cap:"), *pieces(" " + "dog " * 40)]
    assert targets[0].tolist() == [*whole[:11], 1]
    assert (targets[:, -1] == 1).all() and prefix[0] == len(pieces("cap:"))
    assert (made(short)[0][1:] == 3).all()
    np.testing.assert_array_equal(made(short)[0][0, :8], made()[0][0, :8])


def test_other_boxes_and_tasks():
    boxes = BoxText(10, ("xmin", "ymin", "xmax", "ymax"))
    targets = DecoderTargets(PATH, tasks=("ground", "caption"), boxes=boxes, text_norm="none")
    rows, _ = made(targets, regions=REGIONS[:1], text="Dogs")
    texts = targets.tokenizer.decode(rows)
    assert texts == ["gcap: 2 1 8 5 : A red dog", "cap: Dogs"]
    assert targets.parse(rows[0]) == ("ground", "A red dog", (0.1, 0.2, 0.5, 0.8))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("cap: a : b : 1 2 3 4", ("caption", "a : b : 1 2 3 4", None)),
        ("aref: a : b :  0 0 500 250 ", ("refer", "a : b", TREE)),
        (" gcap:  0 0 500 250 : a : b", ("ground", "a : b", TREE)),
        ("aref: a dog : 1 2 3", ("refer", "a dog", None)),
        ("aref: a dog", ("refer", "a dog", None)),
        ("gcap: a dog", ("ground", "a dog", None)),
        ("aref: : 0 0 500 250", ("refer", "", TREE)),
        ("cap:", ("caption", "", None)),
        ("a dog: brown", (None, "a dog: brown", None)),
        ("", (None, "", None)),
    ],
)
def test_reading_what_a_decoder_wrote(text, wanted):
    found = parse(text, BoxText())
    assert isinstance(found, Parsed) and found == wanted


def test_in_a_batch_with_flips():
    prepare = pickle.loads(pickle.dumps(preparation(HorizontalFlip(1.0), TARGETS)))
    items = [
        prepare({**example(i), "regions": REGIONS[:i]}, np.random.default_rng(i), 30)
        for i in range(2)
    ]
    extra = collate(items, 30).fields
    assert extra["targets"].shape == (2, 3, 64) and extra["prefix"].shape == (2, 3)
    assert extra["prefix"].astype(bool).tolist() == [[True, False, False], [True] * 3]
    box = TARGETS.parse(extra["targets"][1, 1]).box
    assert box == (0.1, 0.25, 0.5, 0.8)
    # The caption is the one that the text tower gets.
    texts = prepare.tokenizer.decode(np.stack([item["text"] for item in items]))
    found = [TARGETS.parse(row).text for row in extra["targets"][:, 0]]
    assert all(text and long.startswith(text) for text, long in zip(texts, found, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ()}, r"must name some of caption, refer, ground, got \(\)"),
        ({"tasks": ("caption", "caption")}, "must name each task once"),
        ({"min_score": 1.1}, "min_score must be from 0 to 1, got 1.1"),
        ({"text_norm": "canonicalize"}, "deletes the colons"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        DecoderTargets(PATH, **options)


def test_what_cannot_be_used():
    with pytest.raises(TokenizerError, match="nowhere: no such tokenizer file"):
        made(DecoderTargets("nowhere"))
    with pytest.raises(TokenizerError, match="length 3 has no room for the prefixes"):
        made(DecoderTargets(PATH, length=3))
    with pytest.raises(ExampleError, match="blank: the text .* lone surrogate"):
        made(regions=[{**REGIONS[0], "phrase": "\ud800"}])
    with pytest.raises(ValueError, match="blank: region 0 cannot be used"):
        made(regions=[{"box": DOG}])


@pytest.mark.parametrize("model", ["small_8k.model", "gemma_256k.model"])
def test_sequences_of_other_tokenizers_read_back(shared, model):
    targets = DecoderTargets(str(shared / "data/tokenizer" / model))
    rows, prefix = made(targets, regions=REGIONS[1:2], text="Une école à Москва")
    assert [targets.parse(row)[1:] for row in rows] == [
        ("une école à Москва", None),
        ("a tree: green", TREE),
        ("a tree: green", TREE),
    ]
    assert (prefix > 0).all() and (rows == 1).sum(axis=1).tolist() == [1, 1, 1]
