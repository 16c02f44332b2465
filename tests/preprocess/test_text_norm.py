"""The four case rules, on what each of them leaves alone."""

import inspect

import pytest

from siglip2_jax.preprocess.text_norm import normalize

CASES = [
    # text, reference, unicode_lower, canonicalize
    ("A Dog.", "a dog.", "a dog.", "a dog"),
    ("МОСКВА", "МОСКВА", "москва", "москва"),
    ("ÉCOLE", "École", "école", "école"),
    ("ΑΘΗΝΑ", "ΑΘΗΝΑ", "αθηνα", "αθηνα"),
    ("İSTANBUL", "İstanbul", "i̇stanbul", "i̇stanbul"),
    ("don't", "don't", "don't", "dont"),
    ("C++ code & #1", "c++ code & #1", "c++ code & #1", "c code 1"),
    ("snow_leopard", "snow_leopard", "snow_leopard", "snow leopard"),
    ("  two\n\tlines ", "  two\n\tlines ", "  two\n\tlines ", "two lines"),
    ("你好，世界！", "你好，世界！", "你好，世界！", "你好，世界！"),
    ("", "", "", ""),
]


@pytest.mark.parametrize("text, reference, unicode_lower, canonicalize", CASES)
def test_modes(text, reference, unicode_lower, canonicalize):
    assert normalize(text, "reference") == reference
    assert normalize(text, "unicode_lower") == unicode_lower
    assert normalize(text, "canonicalize") == canonicalize
    assert normalize(text, "none") == text


def test_official_forms(golden):
    forms = golden.config("texts")
    assert [normalize(text, "reference") for text in forms["texts"]] == forms["lower"]
    assert [normalize(text, "canonicalize") for text in forms["texts"]] == forms["canonical"]


def test_reference_changes_exactly_26_characters():
    unicode = "".join(chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000)
    changed = [
        (old, new)
        for old, new in zip(unicode, normalize(unicode, "reference"), strict=True)
        if old != new
    ]
    assert changed == [(chr(c), chr(c + 32)) for c in range(ord("A"), ord("Z") + 1)]


def test_unknown_mode_names_the_choices():
    unchecked = inspect.unwrap(normalize)  # the test suite's type checks would refuse it first
    with pytest.raises(ValueError, match="'lower' is unknown: choose one of reference, unicode_"):
        unchecked("a", "lower")
