"""Evaluator of the captions that a decoder writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from siglip2_jax.benchmarks.decoder.bleu import bleu_4
from siglip2_jax.benchmarks.decoder.cider import cider_d
from siglip2_jax.benchmarks.decoder.measured import MeasuredCaptioner
from siglip2_jax.data.prefetch import thread_map
from siglip2_jax.data.sources import Examples, Source
from siglip2_jax.inference import Captioner, GenerationConfig, Query
from siglip2_jax.inference.queries import Group
from siglip2_jax.preprocess.decode import NamedImage

READ_AHEAD = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionQuality:
    """CIDEr-D and BLEU-4 of written captions against those of the set.

    Attributes:
      source: the set, such as a `karpathy.Karpathy`, which keeps repeated captions as COCO's
        evaluation does. Examples without a caption are left out.
      name: prefix of its numbers.
      every: steps between two measurements.
      count: how many examples, from the first; None means all. Scores of different counts cannot
        be compared (see `cider.cider_d`).
      max_num_patches: token budget at native resolution.
      generation: how the decoder writes.
    """

    source: Source
    name: str = "captions"
    every: int = 10_000
    count: int | None = None
    max_num_patches: int = 256
    generation: GenerationConfig = GenerationConfig()

    def __call__(self, model: Captioner | MeasuredCaptioner) -> dict[str, float]:
        """`cider_d` (0 to 10, tables show it times 100), `bleu_4` (0 to 1) and `empty`.

        `empty` is how many images have no caption: unreadable ones, and those about which nothing
        was written.

        Args:
          model: writes; a `MeasuredCaptioner` shares the work among hosts.

        Raises:
          ValueError: fewer than two examples have a caption to compare with.
        """
        references: list[tuple[str, ...]] = []
        groups = self._groups(self.source.open(), references)
        answers = model.answer(groups, self.generation, self.max_num_patches)
        captions = ["" if group is None else group[0].text for group in answers]
        if len(references) < 2:
            raise ValueError(
                f"evaluator {self.name!r}: {len(references)} of its examples have a caption to "
                "compare with; CIDEr-D needs at least 2"
            )
        return {
            "cider_d": float(np.mean(cider_d(captions, references))),
            "bleu_4": bleu_4(captions, references),
            "empty": float(sum(not text.strip() for text in captions)),
        }

    def _groups(self, examples: Examples, references: list[tuple[str, ...]]) -> Iterator[Group]:
        """Images that have captions; appends these to `references`."""
        count = len(examples) if self.count is None else min(self.count, len(examples))
        for i, example in enumerate(thread_map(examples.__getitem__, range(count), READ_AHEAD)):
            if example["captions"]:
                references.append(example["captions"])
                yield [(i, Query(NamedImage(example["image"], example["name"])))]
