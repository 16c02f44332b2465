"""Target sequences of the captioning decoder: captions, boxes for phrases, phrases for boxes.

The three tasks of LocCa (Wan et al., arXiv 2403.19596), which SigLIP 2 takes up (arXiv 2502.14786,
section 2.2):

- caption: `cap: {caption}`
- refer: `aref: {phrase} : {box}`
- ground: `gcap: {box} : {phrase}`

The loss covers everything after the prefix, which ends with its first colon. Prefix, phrase and
box are tokenised apart, so that a sentence that is too long loses the end of its phrase and never a
part of its box.
"""

from __future__ import annotations

import os
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from siglip2_jax.data.boxes import BoxText
from siglip2_jax.data.example import ExampleError
from siglip2_jax.data.regions import Box, read_regions
from siglip2_jax.preprocess.text_norm import TextNorm
from siglip2_jax.preprocess.tokenizer import Tokenizer, TokenizerError

Task = Literal["caption", "refer", "ground"]
PREFIXES: dict[Task, str] = {"caption": "cap:", "refer": "aref:", "ground": "gcap:"}
_BETWEEN = " : "
# What may come after a colon begins with one of these.
_NEXT = string.digits + string.ascii_lowercase


class Parsed(NamedTuple):
    """Parts of a target sequence, parsed from its text.

    Attributes:
      task: by its prefix; None where that is none of ours.
      text: the caption or phrase.
      box: None where there is none that can be read.
    """

    task: Task | None
    text: str
    box: Box | None


def parse(text: str, boxes: BoxText) -> Parsed:
    """Reads a sequence back, as a decoder wrote it.

    The phrase may hold colons: a box is looked for after the last one (refer) or before the first
    one (ground).

    Args:
      text: with its prefix.
      boxes: how boxes are written.
    """
    head, colon, rest = text.strip().partition(":")
    task: Task | None = next(
        (task for task, prefix in PREFIXES.items() if prefix == head + colon), None
    )
    if task is None:
        return Parsed(None, text.strip(), None)
    phrase, box = rest, ""
    if task == "refer" and _BETWEEN in rest:
        phrase, _, box = rest.rpartition(_BETWEEN)
    elif task == "ground" and _BETWEEN in rest:
        box, _, phrase = rest.partition(_BETWEEN)
    return Parsed(task, phrase.strip(), boxes.read(box))


@dataclass(frozen=True)
class DecoderTargets:
    """Adds `targets` and `prefix` to the fields of an example, by task; a transform.

    - `targets`, of each task [S] int32: its prefix, the rest, the end mark, and pads up to S. Of
      what is too long the caption or phrase is cut; the box and the end mark stay.
    - `prefix`, of each task int32: how many leading ids are given and not learned.

    Where there is no region, those of refer and ground hold nothing but pads, and their prefix is
    0; so does that of caption where the text is blank. Refer and ground each draw a region of their
    own.

    Attributes:
      tokenizer_path: a tokenizer's file or directory, as `Tokenizer.load` takes it; opened once in
        a process.
      length: S.
      tasks: the sequences to make; regions are drawn in this order.
      boxes: how boxes are written.
      min_score: regions with a lower score are not drawn, 0 to 1.
      pad_id: the id of the padding.
      text_norm: what is done to the sequences before they are tokenised.
      refer_loss: "all" learns the phrase and its box from the image, as LocCa does; "box" gives the
        phrase as a part of the prefix and learns the box alone, as decoders fine-tuned for
        referring expressions do.
    """

    scale_free: ClassVar[bool] = True

    tokenizer_path: str
    length: int = 64
    tasks: tuple[Task, ...] = ("caption", "refer", "ground")
    boxes: BoxText = BoxText()
    min_score: float = 0.3
    pad_id: int = 0
    text_norm: TextNorm = "reference"
    refer_loss: Literal["all", "box"] = "all"

    def __post_init__(self) -> None:
        if not self.tasks or not set(self.tasks) <= PREFIXES.keys():
            raise ValueError(
                f"DecoderTargets.tasks must name some of {', '.join(PREFIXES)}, got {self.tasks}"
            )
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"DecoderTargets.tasks must name each task once, got {self.tasks}")
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"DecoderTargets.min_score must be from 0 to 1, got {self.min_score}")
        if self.refer_loss not in ("all", "box"):
            raise ValueError(
                f'DecoderTargets.refer_loss must be "all" or "box", got {self.refer_loss!r}'
            )
        if self.text_norm == "canonicalize":
            raise ValueError(
                'DecoderTargets.text_norm "canonicalize" deletes the colons between phrases and '
                'boxes; choose "reference", "unicode_lower" or "none"'
            )

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """The example with its `fields` filled.

        Raises:
          ValueError: its regions are malformed or a text cannot be tokenised; or the tokenizer
            cannot be opened.
        """
        regions = [region for region in read_regions(example) if region.score >= self.min_score]
        targets, prefix = {}, {}
        for task in self.tasks:
            phrase, box = example["text"], None
            if task != "caption":
                region = regions[rng.integers(len(regions))] if regions else None
                phrase, box = (region.phrase, region.box) if region else ("", None)
            ids, count = [], 0
            if phrase.strip():
                tokenizer = self.tokenizer  # not in the try: it is no example's fault
                try:
                    ids, count = self._sequence(tokenizer, task, phrase, box)
                except TokenizerError as error:
                    raise ExampleError(f"{example.get('name', 'an example')}: {error}.") from error
            targets[task] = np.full(self.length, self.pad_id, np.int32)
            targets[task][: len(ids)] = ids
            prefix[task] = np.int32(count)
        example["fields"] |= {"targets": targets, "prefix": prefix}
        return example

    def _sequence(
        self, tokenizer: Tokenizer, task: Task, phrase: str, box: Box | None
    ) -> tuple[list[int], int]:
        """Ids of a sequence without pads, and how many of them are given."""
        encode = tokenizer.encode
        head = encode(PREFIXES[task])
        text, place = f" {phrase}", ""
        if box is not None:
            place = f"{_BETWEEN}{self.boxes.write(box)}"
            if task == "ground":
                text, place = f"{_BETWEEN}{phrase}", f" {self.boxes.write(box)}"
        words, sides = encode(text), encode(place)
        words = words[: self.length - 1 - len(head) - len(sides)]
        rest = [*sides, *words] if task == "ground" else [*words, *sides]
        count = len(head)
        if task == "refer" and self.refer_loss == "box":
            count += len(words) + len(_colon(tokenizer))
        return [*head, *rest, tokenizer.eos_id], count

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, the same object for all equal settings in a process.

        Raises:
          TokenizerError: it cannot be opened, or `length` is too short for a prefix and a box.
        """
        return _open(self)

    def parse(self, ids: Int[np.ndarray, " S"] | Sequence[int]) -> Parsed:
        """Reads ids back, those of a target or as a decoder wrote them, up to the end mark.

        Raises:
          TokenizerError: an id is not of this vocabulary.
        """
        return parse(self.tokenizer.decode([[*map(int, ids)]])[0], self.boxes)


def opening(tokenizer: Tokenizer, task: Task, text: str) -> list[int]:
    """The ids with which all sequences of a task begin that have the same phrase or box first.

    A tokenizer may join a colon and what follows it: then the decoder writes both.

    Args:
      tokenizer: the decoder's.
      task: refer or ground.
      text: the phrase of refer, the box of ground.
    """
    return [
        *tokenizer.encode(PREFIXES[task]),
        *tokenizer.encode(f" {text}"),
        *_colon(tokenizer),
    ]


def _colon(tokenizer: Tokenizer) -> list[int]:
    """Ids that stand between phrase and box, whatever comes after them."""
    return list(os.path.commonprefix([tokenizer.encode(f"{_BETWEEN}{text}") for text in _NEXT]))


@lru_cache(maxsize=8)
def _open(targets: DecoderTargets) -> Tokenizer:
    tokenizer = Tokenizer.load(
        targets.tokenizer_path,
        text_norm=targets.text_norm,
        length=targets.length,
        pad_id=targets.pad_id,
    )
    sides = [str(side) for side in range(targets.boxes.bins + 1)]
    longest = max(sides, key=lambda side: len(tokenizer.encode(f" {side}")))
    box = _BETWEEN + " ".join(4 * [longest])
    for task in targets.tasks:
        parts = PREFIXES[task], box if task != "caption" else ""
        count = sum(len(tokenizer.encode(part)) for part in parts)
        if count > targets.length - 2:
            raise TokenizerError(
                f'DecoderTargets.length {targets.length} has no room for "{"".join(parts)}", a '
                f"token of a phrase and the end mark, which take {count + 2} with this tokenizer; "
                "choose a greater length"
            )
    return tokenizer
