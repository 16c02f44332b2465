"""Queries for a detector: the word n-grams of an image's alt-text, in several prompts.

The label space of OWLv2 (Minderer et al., arXiv 2306.09683, sections 3.1 and 4.1), whose recipe
SigLIP 2 follows for its regions (arXiv 2502.14786, section 2.2). The two lists of words are ours:
the paper's generic terms are not in it.
"""

from __future__ import annotations

import unicodedata

# The seven best of CLIP's 80 templates (Radford et al., arXiv 2103.00020; openai/CLIP, notebook
# "Prompt Engineering for ImageNet").
PROMPTS = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)

# English words that say nothing on their own.
STOP_WORDS = frozenset(
    """
    a about above across after again against all along also although always am among an and another
    any anyone anything are around as at away back be because been before behind being below beneath
    beside besides between beyond both but by can cannot could did do does doing done down during
    each either else enough etc even ever every everyone everything few for from further get gets
    getting go goes going got had has have having he her here hers herself him himself his how
    however i if in inside into is it it's its itself just last least less let like lot lots made
    make makes many may me might mine more most much must my myself near neither never next no
    nobody none nor not nothing now of off often on once one ones only onto or other others our ours
    ourselves out outside over own per perhaps put quite rather really same several shall she should
    since so some someone something somewhere still such than that that's the their theirs them
    themselves then there these they this those though through throughout thus till to together too
    toward towards under until up upon us very via was we well were what when where whether which
    while who whole whom whose why will with within without would yet you your yours yourself
    """.split()
)
# Words of alt-texts about the picture as such, its file, its shop or its site.
GENERIC_TERMS = frozenset(
    """
    alamy background backgrounds clipart close-up closeup com copyright download downloads editorial
    file gallery getty gif hd high-quality high-resolution html http https image images img istock
    jpeg jpg original photo photograph photographs photography photos pic pics picture pictured
    pictures png preview resolution royalty royalty-free screenshot shot shots showing shown shows
    shutterstock stock svg thumbnail untitled vector vectors view views wallpaper wallpapers webp
    www
    """.split()
)

_NAMELESS = STOP_WORDS | GENERIC_TERMS
# Kept inside a word: "dog's", "close-up", "3.5", "b&b".
_INNER = "'’-.&"


def ngrams(text: str, longest: int = 10) -> tuple[str, ...]:
    """The word n-grams of a text that may name something, in lower case.

    Words are what white space and punctuation leave, in any script; where a script has no spaces,
    what stands between two marks is one word. N-grams made of nothing but stop words and generic
    terms are dropped.

    Args:
      text: such as an alt-text.
      longest: the greatest number of words.

    Returns:
      Each n-gram once, by the place of its first word and then by length.
    """
    words = _words(text)
    phrases: dict[str, None] = {}
    for start in range(len(words)):
        for end in range(start + 1, min(start + longest, len(words)) + 1):
            if not _NAMELESS.issuperset(words[start:end]):
                phrases[" ".join(words[start:end])] = None
    return tuple(phrases)


def _words(text: str) -> list[str]:
    spaced = "".join(" " if _divides(char) else char for char in text.lower())
    words = (word.strip(_INNER) for word in spaced.split())
    # Marks alone, such as a joiner that an emoji leaves behind, are no word.
    return [word for word in words if any(map(str.isalnum, word))]


def _divides(char: str) -> bool:
    """True for punctuation and symbols that are not kept inside words."""
    return char not in _INNER and unicodedata.category(char)[0] in "PS"
