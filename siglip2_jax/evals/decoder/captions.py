"""How good the captions are that a decoder writes."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator

import numpy as np

from siglip2_jax.captioning import Ask, Captioner, Writing
from siglip2_jax.data.prefetch import ahead
from siglip2_jax.data.sources import Examples, Source
from siglip2_jax.evals.decoder.bleu import bleu_4
from siglip2_jax.evals.decoder.cider import cider_d
from siglip2_jax.inference import DEFAULT_BATCH_SIZE
from siglip2_jax.preprocess.decode import ImageError
from siglip2_jax.progress import Update

READ_AHEAD = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionQuality:
    """CIDEr-D and BLEU-4 of written captions against those of the set.

    Every process writes all captions.

    Attributes:
      source: the set, such as a `karpathy.Karpathy`, which keeps repeated captions as COCO's
        evaluation does. Examples without a caption are left out.
      name: prefix of its numbers.
      every: steps between two measurements.
      count: how many examples, from the first; None means all. Scores of different counts cannot
        be compared (see `cider.cider_d`).
      max_num_patches: token budget at native resolution.
      batch_size: images per program call.
      writing: how the decoder writes.
    """

    source: Source
    name: str = "captions"
    every: int = 10_000
    count: int | None = None
    max_num_patches: int = 256
    batch_size: int = DEFAULT_BATCH_SIZE
    writing: Writing = Writing()

    def __call__(self, model: Captioner, show: Update | None = None) -> dict[str, float]:
        """`cider_d` (0 to 10, tables show it times 100), `bleu_4` (0 to 1) and `empty`.

        `empty` is how many images have no caption: unreadable ones, each with a warning, and those
        about which nothing was written.

        Args:
          model: writes.
          show: told how many images have been read, of how many.

        Raises:
          ValueError: fewer than two examples have a caption to compare with.
        """
        references: list[tuple[str, ...]] = []
        asks = self._asks(self.source.open(), references, show)
        written = []
        for answer in model.stream(asks, self.writing, self.max_num_patches, self.batch_size):
            if isinstance(answer, ImageError):
                warnings.warn(f"{answer}; its caption counts as empty", stacklevel=2)
            written.append("" if isinstance(answer, ImageError) else answer.text)
        if len(references) < 2:
            raise ValueError(
                f"evaluator {self.name!r}: {len(references)} of its examples have a caption to "
                "compare with; CIDEr-D needs at least 2"
            )
        return {
            "cider_d": float(np.mean(cider_d(written, references))),
            "bleu_4": bleu_4(written, references),
            "empty": float(sum(not text.strip() for text in written)),
        }

    def _asks(
        self, examples: Examples, references: list[tuple[str, ...]], show: Update | None
    ) -> Iterator[Ask]:
        """Images that have captions; appends these to `references`."""
        count = len(examples) if self.count is None else min(self.count, len(examples))
        for done, example in enumerate(ahead(examples.__getitem__, range(count), READ_AHEAD), 1):
            if show is not None:
                show(done, count)
            if example["captions"]:
                references.append(example["captions"])
                yield Ask(example["image"])
