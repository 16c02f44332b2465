"""Normalisation of a caption before the tokenizer sees it: four named modes.

The choice moves embeddings (an upper-case caption and its lower-case form have different ids), so
every embedding file, evaluation result and checkpoint records it.
"""

from __future__ import annotations

import string
from typing import Literal, get_args

TextNorm = Literal["reference", "unicode_lower", "canonicalize", "none"]

_ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_NO_PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))


def normalize(text: str, mode: TextNorm) -> str:
    """Normalises a text.

    - `reference`: A-Z to a-z and nothing else, as `tf.strings.lower` does in the released SigLIP 2
      pipeline (big_vision, `SigLIP2_demo.ipynb`): "МОСКВА" stays, "ÉCOLE" becomes "École".
    - `unicode_lower`: `str.lower`, as the SigLIP 2 tokenizer of transformers 5.
    - `canonicalize`: lower case, "_" to a space, no other ASCII punctuation, white space collapsed
      and stripped: "C++ code & #1" becomes "c code 1". This is big_vision's rule for SigLIP 1
      prompts (`_canonicalize` in `evaluators/proj/image_text/prompt_engineering.py`), from which
      the others come. transformers' SigLIP 1 tokenizer deletes "_" instead. open_clip repairs the
      text with ftfy first, which folds full-width signs to ASCII, so that "你好，世界！" loses its
      punctuation; here that stays, and SigLIP 1's SentencePiece model folds it.
    - `none`: unchanged.

    Raises:
      ValueError: the mode is none of these.
    """
    match mode:
        case "reference":
            return text.translate(_ASCII_LOWER)
        case "unicode_lower":
            return text.lower()
        case "canonicalize":
            return " ".join(text.translate(_NO_PUNCTUATION).lower().split())
        case "none":
            return text
    raise ValueError(
        f"text_norm {mode!r} is unknown: choose one of {', '.join(get_args(TextNorm))}"
    )
