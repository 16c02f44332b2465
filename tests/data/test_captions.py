"""Captions of several granularities, and words left out: shares, randomness, refusals."""

import pickle

import numpy as np
import pytest
from data.samples import example, preparation

from siglip2_jax.data.captions import CaptionFields, DropWords
from siglip2_jax.data.example import ExampleError

DRAW = CaptionFields((("captions", 2.0), ("short", 1.0), ("long", 1.0)))
ROW = {"name": "a.jpg", "text": "alt", "captions": ("alt", "title")}
ROW |= {"short": "a dog", "long": ["a dog on a lawn", "a dog in the sun"]}


def drawn(row: dict, draw: CaptionFields = DRAW, seed: int = 0, times: int = 2000) -> list[str]:
    rng = np.random.default_rng(seed)
    return [draw(row, rng)["text"] for _ in range(times)]


def test_fields_have_their_shares_and_texts_within_them_are_as_likely():
    texts, shares = drawn(ROW), dict(zip(["alt", "title"], [0.25, 0.25], strict=True))
    shares |= {"a dog": 0.25, "a dog on a lawn": 0.125, "a dog in the sun": 0.125}
    assert set(texts) == set(shares)
    for text, share in shares.items():
        deviation = np.sqrt(2000 * share * (1 - share))
        assert abs(texts.count(text) - 2000 * share) < 4 * deviation, text


def test_weight_of_what_is_null_or_blank_goes_to_the_others():
    for nothing in (None, "", [" ", None]):
        texts = drawn(ROW | {"long": nothing})
        assert set(texts) == {"alt", "title", "a dog"}
        assert abs(texts.count("a dog") - 2000 / 3) < 4 * np.sqrt(2000 * 2 / 9)
    row = ROW | {"captions": (), "short": None, "long": None}
    assert DRAW(row, np.random.default_rng(0)) == row


def test_a_draw_is_a_part_of_the_examples_randomness():
    """The same whenever it is read again, another one in another epoch; a copy draws alike."""
    prepare = preparation(DRAW, image_size=4)
    row = example(0) | {"short": "a dog", "long": "a dog on a lawn"}

    def ids(prepare, seed: int) -> tuple:
        return tuple(prepare(row, np.random.default_rng((7, seed)), 1)["text"])

    first = [ids(prepare, seed) for seed in range(20)]
    assert first == [ids(pickle.loads(pickle.dumps(prepare)), seed) for seed in range(20)]
    wanted = {tuple(prepare.tokenizer([text]).ids[0]) for text in ("a dog", "a dog on a lawn")}
    assert wanted < set(first)


def test_a_blank_example_stays_as_it_is():
    blank = {"name": "blank", "text": "", "captions": ()}
    assert DRAW(blank, np.random.default_rng(0)) is blank


def test_a_missing_field_is_named():
    row = {key: value for key, value in ROW.items() if key != "long"}
    message = "a.jpg: it has no field 'long', .*; give it null where there is no such caption"
    with pytest.raises(ExampleError, match=message):
        drawn(row)
    with pytest.raises(ValueError, match="a.jpg: a caption is int 3, expected a text"):
        drawn(ROW | {"short": 3})


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((), r"must name each field once, got \[\]"),
        ((("long", 1.0), ("long", 2.0)), r"must name each field once, got \['long', 'long'\]"),
        ((("text", 1.0),), "names 'text', which no example has .* its source are 'captions'"),
        ((("caption", 1.0),), "names 'caption', which no example has"),
        ((("long", 0.0),), "must be above 0, got 0.0 for 'long'"),
        ((("long", float("inf")),), "must be above 0, got inf for 'long'"),
    ],
)
def test_weights_are_checked(weights, message):
    with pytest.raises(ValueError, match=message):
        CaptionFields(weights)


def test_words_are_left_out_alike_and_stay_in_order():
    words = "a brown dog runs over the wet lawn".split()
    texts = [text.split() for text in drawn(ROW | {"text": " ".join(words)}, DropWords(0.3))]
    for word in words:
        left_out = sum(word not in text for text in texts)
        assert abs(left_out - 600) < 4 * np.sqrt(2000 * 0.3 * 0.7), word
    assert all(sorted(text, key=words.index) == text for text in texts)


def test_one_word_stays():
    texts = drawn(ROW | {"text": "a  dog"}, DropWords(0.9))
    assert set(texts) == {"a", "dog", "a dog"}
    assert abs(texts.count("a dog") - 20) < 4 * np.sqrt(20)
    assert abs(texts.count("a") - texts.count("dog")) < 4 * np.sqrt(2000)


def test_nothing_is_left_out():
    assert set(drawn(ROW | {"text": "a dog"}, DropWords(0.0), times=50)) == {"a dog"}
    blank = {"name": "blank", "text": " ", "captions": ()}
    assert DropWords()(blank, np.random.default_rng(0)) is blank


@pytest.mark.parametrize("probability", [-0.1, 1.0, float("nan")])
def test_the_probability_is_checked(probability):
    with pytest.raises(ValueError, match="probability must be at least 0 and below 1, got"):
        DropWords(probability)
