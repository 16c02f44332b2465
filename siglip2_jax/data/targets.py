"""Target sequences of the captioning decoder: captions, boxes for phrases, phrases for boxes.

The three tasks of LocCa (Wan et al., arXiv 2403.19596), which SigLIP 2 takes up (arXiv 2502.14786,
section 2.2):

- caption: `cap: {caption}`
- refer: `aref: {phrase} : {box}`
- ground: `gcap: {box} : {phrase}`

The loss covers everything after the prefix, which ends with its first colon.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from siglip2_jax.data.boxes import BoxText
from siglip2_jax.data.prepare import ExampleError
from siglip2_jax.data.regions import Box, Region, read_regions
from siglip2_jax.preprocess.text_norm import TextNorm
from siglip2_jax.preprocess.tokenizer import Tokenizer, TokenizerError

Task = Literal["caption", "refer", "ground"]
PREFIXES: dict[Task, str] = {"caption": "cap:", "refer": "aref:", "ground": "gcap:"}
_BETWEEN = " : "


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
    """Adds `targets` and `prefix` to the fields of an example; a transform.

    - `targets` [R, S] int32: a sequence for each of R tasks: its prefix, the rest, the end mark,
      and pads up to S. What is too long is cut, and still ends with the end mark.
    - `prefix` [R] int32: how many ids the prefix has. It is tokenised on its own, so that its ids
      begin every sequence of the task.

    Where there is no region, the rows of refer and ground hold nothing but pads, and their prefix
    is 0; so does the row of caption where the text is blank. Refer and ground each draw a region
    of their own.

    Attributes:
      tokenizer_path: a tokenizer's file or directory, as `Tokenizer.load` takes it; opened once in
        a process.
      length: S.
      tasks: which sequences are made, in this order.
      boxes: how boxes are written.
      min_score: regions with a lower score are not drawn, 0 to 1.
      pad_id: the id of the padding.
      text_norm: what is done to the sequences before they are tokenised.
    """

    scale_free: ClassVar[bool] = True

    tokenizer_path: str
    length: int = 64
    tasks: tuple[Task, ...] = ("caption", "refer", "ground")
    boxes: BoxText = BoxText()
    min_score: float = 0.3
    pad_id: int = 0
    text_norm: TextNorm = "reference"

    def __post_init__(self) -> None:
        if not self.tasks or not set(self.tasks) <= PREFIXES.keys():
            raise ValueError(
                f"DecoderTargets.tasks must name some of {', '.join(PREFIXES)}, got {self.tasks}"
            )
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"DecoderTargets.tasks must name each task once, got {self.tasks}")
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"DecoderTargets.min_score must be from 0 to 1, got {self.min_score}")
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
        found = [region for region in read_regions(example) if region.score >= self.min_score]
        targets = np.full((len(self.tasks), self.length), self.pad_id, np.int32)
        prefix = np.zeros(len(self.tasks), np.int32)
        for row, task in enumerate(self.tasks):
            if task == "caption":
                rest = example["text"]
            else:
                rest = self._pair(task, found[rng.integers(len(found))]) if found else ""
            if rest.strip():
                ids, prefix[row] = self._sequence(task, rest, example.get("name", "an example"))
                targets[row, : len(ids)] = ids
        example["fields"] |= {"targets": targets, "prefix": prefix}
        return example

    def _sequence(self, task: Task, rest: str, name: str) -> tuple[list[int], int]:
        """Ids of a sequence without pads, and how many of them are the prefix."""
        tokenizer = self.tokenizer
        try:
            head, tail = _encode(tokenizer, [PREFIXES[task], f" {rest}"])
        except TokenizerError as error:
            raise ExampleError(f"{name}: {error}.") from error
        return [*[*head, *tail][: self.length - 1], tokenizer.eos_id], len(head)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, the same object for all equal settings in a process.

        Raises:
          TokenizerError: it cannot be opened, or `length` is too short for a prefix.
        """
        return _open(self.tokenizer_path, self.text_norm, self.length, self.pad_id)

    def parse(self, ids: Int[np.ndarray, " S"] | Sequence[int]) -> Parsed:
        """Reads ids back, those of a target or as a decoder wrote them, up to the end mark.

        Raises:
          TokenizerError: an id is not of this vocabulary.
        """
        return parse(self.tokenizer.decode([[*map(int, ids)]])[0], self.boxes)

    def _pair(self, task: Task, region: Region) -> str:
        box = self.boxes.write(region.box)
        parts = (region.phrase, box) if task == "refer" else (box, region.phrase)
        return _BETWEEN.join(parts)


@lru_cache(maxsize=8)
def _open(path: str, text_norm: TextNorm, length: int, pad_id: int) -> Tokenizer:
    tokenizer = Tokenizer.load(path, text_norm=text_norm, length=length, pad_id=pad_id)
    if tokenizer(list(PREFIXES.values())).truncated.any():
        raise TokenizerError(
            f"DecoderTargets.length {length} has no room for the prefixes, such as "
            f'"{PREFIXES["refer"]}", with this tokenizer; choose a greater length'
        )
    return tokenizer


def _encode(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """The ids of each text, without the end mark."""
    rows = tokenizer(texts).ids.tolist()
    return [row[: row.index(tokenizer.eos_id)] for row in rows]
