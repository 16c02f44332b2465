"""CIDEr-D and BLEU-4 against COCO's evaluation code and against the formulas, with NumPy.

Pinned numbers are those of pycocoevalcap 1.2 (the scorers of tylin/coco-caption, with Stanford
CoreNLP 3.4.1's PTB tokenizer).
"""

import json

import numpy as np
import pytest
from benchmarks.decoder.plain_cider import plain_cider

from siglip2_jax.benchmarks.decoder.bleu import bleu_4
from siglip2_jax.benchmarks.decoder.cider import cider_d
from siglip2_jax.benchmarks.decoder.words import caption_words

CAPTIONS = [
    "A man is riding a brown horse.",
    "Two dogs play in the snow",
    "a cat",
    "A black-and-white photo of a man's hat, on a table",
    "the the the the",
    "",
    "A plate of food with broccoli and rice and broccoli",
]
REFERENCES = [
    [
        "A man rides a horse on the beach.",
        "A man is riding a brown horse.",
        "Someone on a brown horse near the sea",
    ],
    ["Two dogs are playing in the snow.", "dogs play outside"],
    [
        "A cat sleeps on a red couch",
        "A red couch with a cat on it, sleeping",
        "A cat",
        "Cat!",
    ],
    ["A man's hat lies on the table.", "There isn't anything but a hat on the table"],
    ["The quick brown fox jumps over the lazy dog at 10:30 a.m.", "the fox (a red one) jumps"],
    ["A bus on the street.", "A city bus drives down the street"],
    [
        "A plate of food with broccoli and rice.",
        "Broccoli, rice and meat on a white plate.",
    ],
]
CIDER_D = [
    4.484083864355397,
    2.769718993694929,
    2.5703841561844074,
    2.097098472520779,
    0.04731069098025882,
    0.0,
    4.621896819110491,
]
BLEU_4 = 0.48774930933078475


def test_the_numbers_of_cocos_evaluation():
    np.testing.assert_allclose(cider_d(CAPTIONS, REFERENCES), CIDER_D, rtol=1e-12)
    assert bleu_4(CAPTIONS, REFERENCES) == pytest.approx(BLEU_4, rel=1e-8)  # it adds 1e-9


def test_the_numbers_of_cocos_evaluation_on_its_captions(shared):
    """The first caption of each photo against the other four."""
    lines = (shared / "data" / "coco_mini" / "annotations.jsonl").read_text().splitlines()
    rows = [json.loads(line)["captions"] for line in lines]
    first, others = [row[0] for row in rows], [row[1:] for row in rows]
    assert np.mean(cider_d(first, others)) == pytest.approx(0.9830153423818773, rel=1e-12)
    assert bleu_4(first, others) == pytest.approx(0.2154359152506334, rel=1e-8)


def test_the_formula():
    """Few words, so that most n-grams repeat; captions of every length, repeated ones too."""
    rng = np.random.default_rng(0)

    def text(least):
        return " ".join(rng.choice(list("abcd"), rng.integers(least, 9)))

    for _ in range(20):
        references = [[text(1) for _ in range(rng.integers(1, 4))] for _ in range(6)]
        references[1] = references[0]
        captions = [text(0) for _ in range(6)]
        captions[2] = references[2][0]
        found = cider_d(captions, references)
        np.testing.assert_allclose(found, plain_cider(captions, references), rtol=1e-12, atol=1e-14)


def test_degenerate_captions():
    same = [["a dog runs in the park"]] * 3
    assert cider_d(["a dog runs in the park"] * 3, same).tolist() == [0, 0, 0]  # nothing is rare
    assert bleu_4(["a dog runs in the park"] * 3, same) == pytest.approx(1, abs=1e-15)
    perfect = [["a dog runs by"], ["two cats sleep here"]]
    texts = [own[0] for own in perfect]
    np.testing.assert_allclose(cider_d(texts, perfect), [10, 10], rtol=1e-15)
    for nothing in ("", " ", "...", "zebra"):
        assert cider_d([nothing] * 2, perfect).tolist() == [0, 0]
        assert bleu_4([nothing] * 2, perfect) == 0
    assert cider_d(texts, [["!"], ["?"]]).tolist() == [0, 0]
    assert bleu_4(texts, [["!"], ["?"]]) == 0
    assert bleu_4([], []) == 0


def test_what_cannot_be_compared():
    with pytest.raises(ValueError, match="CIDEr-D got 1 image; .* needs at least 2"):
        cider_d(["a"], [["a"]])
    for measure in (cider_d, bleu_4):
        with pytest.raises(ValueError, match="there are 1 captions and references for 2 images"):
            measure(["a"], [["a"], ["b"]])
        with pytest.raises(ValueError, match="image 1 has no reference caption"):
            measure(["a", "b"], [["a"], []])


@pytest.mark.parametrize(
    "text, words",
    [
        ("It's the dog's bone; they don't, can't", "it 's the dog 's bone they do n't ca n't"),
        ("the boys' ball/bat, café crème… 1,000", "the boys ball/bat café crème 1,000"),
        ('A "red" one -- at 10:30 a.m. in the U.S.', "a red one at 10:30 a.m. in the u.s."),
        ("50% of (the) $3.50..", "50 % of ( the ) $ 3.50"),
        ("He\u2019s \u201cin\u201d \u2014 cannot", "he 's in can not"),
        ("black-and-white, T-shirt", "black-and-white t-shirt"),
        ("Ein Hund läuft. Собака!", "ein hund läuft собака"),
    ],
)
def test_words(text, words):
    assert caption_words(text) == words.split()
