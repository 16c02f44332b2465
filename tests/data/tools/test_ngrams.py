"""N-grams, against a plain enumeration; and the prompts."""

import random

import pytest

from siglip2_jax.data.tools.ngrams import GENERIC_TERMS, PROMPTS, STOP_WORDS, ngrams


def test_a_caption():
    assert ngrams("A dog, on the beach!") == (
        *("a dog", "a dog on", "a dog on the", "a dog on the beach"),
        *("dog", "dog on", "dog on the", "dog on the beach"),
        *("on the beach", "the beach", "beach"),
    )


def test_all_of_them_up_to_a_length():
    words = [f"w{i}" for i in range(14)]
    random.Random(0).shuffle(words)
    for longest in (1, 3, 10):
        wanted = {" ".join(words[i : i + n]) for n in range(1, longest + 1) for i in range(15 - n)}
        found = ngrams(" ".join(words), longest)
        assert set(found) == wanted and len(found) == len(wanted)
    assert max(len(found.split()) for found in ngrams(" ".join(words))) == 10


@pytest.mark.parametrize(
    "text", ["", "  \n", "...", "A stock photo of the image, PNG", "what is it", "👩‍🚀 !"]
)
def test_texts_that_name_nothing(text):
    assert ngrams(text) == ()


@pytest.mark.parametrize(
    ("text", "longest", "wanted"),
    [
        ("dog dog DOG", 2, ("dog", "dog dog")),
        ("Photo of a dog's close-up.", 1, ("dog's",)),
        ("«Ёлка» в лесу", 1, ("ёлка", "в", "лесу")),
        ("हिन्दी का पेड़।", 1, ("हिन्दी", "का", "पेड़")),
        ("一只狗，一只猫。", 2, ("一只狗", "一只狗 一只猫", "一只猫")),
        ("cats/dogs & 3.5 m", 1, ("cats", "dogs", "3.5", "m")),
        ("B&B #sunset (rome)", 1, ("b&b", "sunset", "rome")),
    ],
)
def test_words_of_any_script(text, longest, wanted):
    assert ngrams(text, longest) == wanted


def test_word_lists_are_of_words_as_they_are_compared():
    for word in STOP_WORDS | GENERIC_TERMS:
        assert ngrams(word + " zebra", 1) == ("zebra",)
    assert not STOP_WORDS & GENERIC_TERMS


def test_prompts_are_among_clips():
    from siglip2_jax.evals.prompts import OPENAI_TEMPLATES

    assert len(set(PROMPTS)) == 7 and all(prompt.count("{}") == 1 for prompt in PROMPTS)
    assert set(PROMPTS) <= set(OPENAI_TEMPLATES)
