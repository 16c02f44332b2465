"""Captioner as `siglip2 eval` gives it to evaluators; embedders are in `benchmarks.measured`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sized
from itertools import islice

import jax

from siglip2_jax.benchmarks.gather import gather_texts
from siglip2_jax.benchmarks.measured import Counter, Measuring, own_share
from siglip2_jax.inference import Answer, Captioner, GenerationConfig
from siglip2_jax.inference.embedder import DEFAULT_BATCH_SIZE
from siglip2_jax.inference.queries import Group
from siglip2_jax.preprocess.decode import ImageError

BATCHES_PER_PART = 8  # writing is slow; whole batches give the same numbers after an interruption


class MeasuredCaptioner(Measuring):
    """Wraps a captioner for one evaluation, which shares its work among hosts.

    Attributes:
      config, tokenizer, boxes: those of the captioner.
    """

    def __init__(
        self,
        captioner: Captioner,
        directory: str | os.PathLike[str] | None = None,
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ):
        """Makes the measured captioner, with the settings of `Measuring`.

        Args:
          captioner: writes; on several hosts it must run on local devices only.
          directory: where answers are kept until the evaluation is over, local or
            `gs://`; None keeps none.
          batch_size: images, and queries, per program call.
        """
        super().__init__(captioner, directory, batch_size)
        self.config, self.tokenizer = captioner.config, captioner.tokenizer
        self.boxes = captioner.boxes

    def answer(
        self, groups: Iterable[Group], generation: GenerationConfig, max_num_patches: int
    ) -> list[list[Answer] | None]:
        """Answers as `Captioner.answer` does; None and no warning for unreadable images."""
        rows = self._begin(0)
        expected = len(groups) if isinstance(groups, Sized) else self._expected
        counter, size = Counter(groups), self._batch_size
        remaining = islice(own_share(counter, size), len(rows), None)
        with self._timed():
            for result in self._model.stream_groups(remaining, generation, max_num_patches, size):
                rows.add(
                    None, json.dumps(str(result) if isinstance(result, ImageError) else result)
                )
                self._count(len(rows), expected)
                if len(rows) % (BATCHES_PER_PART * size) == 0:
                    rows.save()
            rows.save()
        self.images += counter.count
        results = [json.loads(text) for text in in_order(gather_texts(rows.texts()), size)]
        self.failed += [x for x in results if isinstance(x, str)]
        return [None if isinstance(x, str) else [_answer(*row) for row in x] for x in results]


def in_order(texts: list[str], size: int) -> list[str]:
    """Texts of all processes, process by process, in the order of the items they are about.

    Args:
      texts: one for each item.
      size: items of a block, as of `own_share`.
    """
    total, ordered = range(len(texts)), list(texts)
    places = [i for p in range(jax.process_count()) for i in own_share(total, size, p)]
    for place, text in zip(places, texts, strict=True):
        ordered[place] = text
    return ordered


def _answer(text: str, box: list[float] | None, score: float, size: list[int]) -> Answer:
    """Parses a JSON value, which has no tuples."""
    width, height = size
    if box is None:
        return Answer(text, None, score, (width, height))
    left, top, right, bottom = box
    return Answer(text, (left, top, right, bottom), score, (width, height))
