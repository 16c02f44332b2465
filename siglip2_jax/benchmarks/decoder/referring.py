"""Referring expressions: share of phrases whose box a decoder finds.

SigLIP 2's table 5 (arXiv 2502.14786, section 3.4.1): RefCOCO, RefCOCO+ and RefCOCOg, the share of
expressions whose box has an intersection over union of at least 0.5 with the true one, by a decoder
on the frozen encoder that was trained on all three sets together, as LocCa's (arXiv 2403.19596).
`expressions.held_out_images` lists the images that must then be left out of training;
`refer_files.published_splits` gives the table's columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from siglip2_jax.benchmarks.decoder.expressions import Expression, Expressions
from siglip2_jax.benchmarks.decoder.iou import box_ious
from siglip2_jax.benchmarks.decoder.measured import MeasuredCaptioner
from siglip2_jax.inference import Captioner, GenerationConfig, Query
from siglip2_jax.inference.queries import Group, first_ids

ENOUGH = 0.5 - 1e-9  # rounding of shares must not decide


@dataclasses.dataclass(frozen=True, kw_only=True)
class Referring:
    """Acc@0.5 of one split.

    Attributes:
      source: the expressions, such as a `refer_files.Refer` or a `expressions.ExpressionFile`.
      name: prefix of its numbers.
      every: steps between two measurements.
      max_num_patches: token budget at native resolution.
      generation: how the decoder writes.
    """

    source: Expressions
    name: str = "referring"
    every: int = 10_000
    max_num_patches: int = 256
    generation: GenerationConfig = GenerationConfig()

    def __call__(self, model: Captioner | MeasuredCaptioner) -> dict[str, float]:
        """`acc@0.5` and `mean_iou`, from 0 to 1, and counts of expressions without a box.

        `unreadable` counts those whose image cannot be read; `unparsed` those for which no box was
        written, among them the ones too long for the decoder. Both are wrong, with an intersection
        over union of 0.

        Args:
          model: locates; a `MeasuredCaptioner` shares the work among hosts.
        """
        expressions = self.source.open()
        truth = np.array([x.box for x in expressions], np.float64)
        boxes, unreadable = np.full_like(truth, np.nan), 0
        groups = _groups(model, expressions)
        answers = model.answer(groups, self.generation, self.max_num_patches)
        for group, group_answers in zip(groups, answers, strict=True):
            if group_answers is None:
                unreadable += len(group)
                continue
            for (index, _), answer in zip(group, group_answers, strict=True):
                if answer.box is not None:
                    (left, top, right, bottom), (width, height) = answer.box, answer.size
                    boxes[index] = top / height, left / width, bottom / height, right / width
        overlap = box_ious(boxes, truth)
        return {
            "acc@0.5": float(np.mean(overlap >= ENOUGH)),
            "mean_iou": float(np.mean(overlap)),
            "unparsed": float(np.isnan(boxes[:, 0]).sum() - unreadable),
            "unreadable": float(unreadable),
        }


def _groups(model: Captioner | MeasuredCaptioner, expressions: Sequence[Expression]) -> list[Group]:
    """Groups valid queries by image, with the expressions' numbers."""
    images: dict[str, list[tuple[int, Query]]] = {}
    for index, expression in enumerate(expressions):
        query = Query(expression.image, phrase=expression.text)
        try:
            first_ids(query, (1, 1), model.tokenizer, model.boxes, model.config.length)
        except ValueError:  # blank or too long: it must not stop all the others
            continue
        images.setdefault(expression.image, []).append((index, query))
    return list(images.values())
