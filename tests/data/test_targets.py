"""The decoder's targets, against the tokenizer and the texts they are made of."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from data.samples import example, preparation

from siglip2_jax.data.augment import HorizontalFlip
from siglip2_jax.data.boxes import BoxText
from siglip2_jax.data.collate import collate
from siglip2_jax.data.example import ExampleError
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
    """Sequences [R, S] and lengths of prefixes [R], in the order of the tasks."""
    found = targets(blank(**fields), np.random.default_rng(seed))["fields"]
    assert list(found["targets"]) == list(found["prefix"]) == list(targets.tasks)
    rows, prefix = (np.stack(list(found[name].values())) for name in ("targets", "prefix"))
    assert rows.dtype == prefix.dtype == np.int32
    assert rows.shape == (len(targets.tasks), targets.length)
    return rows, prefix


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
    assert again == TARGETS and hash(again) == hash(TARGETS)
    assert again.tokenizer is TARGETS.tokenizer  # opened once
    for seed in range(5):
        np.testing.assert_array_equal(
            made(seed=seed, regions=REGIONS)[0], made(again, seed, regions=REGIONS)[0]
        )


def test_long_sequences_keep_their_end_mark():
    short = replace(TARGETS, length=12, pad_id=3, tasks=("caption",))
    targets, prefix = made(short, text="dog " * 40)
    whole = [*pieces("cap:"), *pieces(" " + "dog " * 40)]
    assert targets[0].tolist() == [*whole[:11], 1]
    assert prefix[0] == len(pieces("cap:"))
    np.testing.assert_array_equal(made(short)[0][0, :8], made()[0][0, :8])


AMHARIC = "አንድ ትልቅ ቡናማ ውሻ በአረንጓዴ ሣር ላይ ከቀይ ኳስ ጋር ይጫወታል"
KHMER = "ឆ្កែពណ៌ត្នោតដ៏ធំមួយក្បាលកំពុងលេងបាល់ពណ៌ក្រហមនៅលើស្មៅបៃតងក្បែរផ្ទះ"


def check_long_phrases(targets: DecoderTargets) -> None:
    """Whatever the phrase, the box can be read back, and as much of the phrase as has room."""
    tokenizer = targets.tokenizer
    box = targets.boxes.write(DOG)
    for phrase in (AMHARIC, KHMER, "dog " * 99):
        assert len(tokenizer.encode(f"aref: {phrase} : {box}")) > targets.length
        rows, prefix = made(targets, regions=[{"box": DOG, "phrase": phrase}])
        (refer, ground) = rows.tolist()
        assert [targets.parse(row).box for row in rows] == [DOG, DOG]
        assert refer[-1] == ground[-1] == 1 and targets.pad_id not in refer + ground
        words, sides = tokenizer.encode(f" {phrase}"), tokenizer.encode(f" : {box}")
        room = targets.length - 1 - prefix[0] - len(sides)
        assert refer[prefix[0] :] == [*words[:room], *sides, 1] and 0 < room < len(words)
        begun = tokenizer.decode([refer[: prefix[0] + room]])[0].removeprefix("aref: ")
        assert phrase.startswith(begun.rstrip("\ufffd"))  # bytes of a letter may be cut
        begun = [*tokenizer.encode("gcap:"), *tokenizer.encode(f" {box}")]
        rest = [*begun, *tokenizer.encode(f" : {phrase}")][: targets.length - 1]
        assert ground == [*rest, 1] and len(rest) > len(begun)


def test_long_phrases_lose_their_end_and_never_the_box():
    """The shipped tokenizer spells these scripts in bytes, three for each letter."""
    check_long_phrases(DecoderTargets(PATH, tasks=("refer", "ground")))


@pytest.mark.parametrize("model", ["small_8k.model", "gemma_256k.model"])
def test_long_phrases_of_other_tokenizers(shared, model):
    path = str(shared / "data/tokenizer" / model)
    check_long_phrases(DecoderTargets(path, length=32, tasks=("refer", "ground")))


def test_boxes_alone_are_learned():
    """All up to the box is given: the same sequences, with a longer prefix."""
    alone = replace(TARGETS, refer_loss="box")
    for phrase in ("A red dog", "a tree: green", KHMER):
        regions = [{"box": DOG, "phrase": phrase}]
        (whole, before), (rows, prefix) = made(regions=regions), made(alone, regions=regions)
        np.testing.assert_array_equal(rows, whole)
        assert prefix[0] == before[0] and prefix[2] == before[2]
        (learned,) = alone.tokenizer.decode([rows[1, prefix[1] :].tolist()])
        assert learned.split() == "50 100 250 375".split()
    assert made(alone)[1].tolist()[1:] == [0, 0]


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
    fields = collate(items, 30).fields
    targets, prefix = fields["targets"], fields["prefix"]
    assert {task: ids.shape for task, ids in targets.items()} == dict.fromkeys(PREFIXES, (2, 64))
    assert [prefix[task].astype(bool).tolist() for task in PREFIXES] == [
        [True, True], [False, True], [False, True]
    ]  # fmt: skip
    box = TARGETS.parse(targets["refer"][1]).box
    assert box == (0.1, 0.25, 0.5, 0.8)
    # The caption is the one that the text tower gets.
    texts = prepare.tokenizer.decode(np.stack([item["text"] for item in items]))
    found = [TARGETS.parse(row).text for row in targets["caption"]]
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
    with pytest.raises(TokenizerError, match='length 3 has no room for "cap:", a token of a phr'):
        made(DecoderTargets(PATH, length=3))
    with pytest.raises(TokenizerError, match='no room for "aref: : 1.. 1.. 1.. 1..", a token'):
        made(DecoderTargets(PATH, length=20))
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
