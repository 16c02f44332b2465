"""SugarCrepe: choice between a caption and a false one made of nearly the same words.

Hsieh et al. 2023 (arXiv 2306.14610, RAIVNLab/sugar-crepe): images of COCO val2017, and a file per
kind of change, `{id: {"filename", "caption", "negative_caption"}}`.
"""

from __future__ import annotations

import dataclasses
import os
from typing import NamedTuple

import numpy as np

from siglip2_jax.data.text import read_json
from siglip2_jax.evals.base import Model
from siglip2_jax.evals.retrieval import FullStop, embed_captions, embed_files, end_sentence

CATEGORIES: tuple[str, ...] = (
    "add_att",
    "add_obj",
    "replace_att",
    "replace_obj",
    "replace_rel",
    "swap_att",
    "swap_obj",
)


class Choice(NamedTuple):
    """One question: the image and its two captions, of which one is false.

    Attributes:
      filename: of the image.
      caption: the true one.
      negative: the false one.
    """

    filename: str
    caption: str
    negative: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class SugarCrepe:
    """Accuracy of telling the true caption from a false one (SugarCrepe); chance is 0.5.

    Attributes:
      path: directory of the files `<category>.json`.
      images: directory of the images, COCO val2017.
      categories: which files; seven are published.
      name: prefix of its numbers.
      every: steps between two measurements.
      max_num_patches: token budget at native resolution.
      full_stop: what is done about the full stop at the end of captions; see
        `retrieval.end_sentence`.
    """

    path: str
    images: str
    categories: tuple[str, ...] = CATEGORIES
    name: str = "sugarcrepe"
    every: int = 1000
    max_num_patches: int = 256
    full_stop: FullStop = "keep"

    def __post_init__(self) -> None:
        end_sentence("", self.full_stop)  # an unknown choice is refused at once

    def __call__(self, model: Model) -> dict[str, float]:
        """`mean` over the categories, and the accuracy in each, from 0 to 1.

        Ties and unreadable images count as wrong. Each image is embedded once.

        Raises:
          ValueError: see `read_choices`; or there are no images in the directory.
        """
        choices = {
            category: read_choices(os.path.join(self.path, f"{category}.json"))
            for category in self.categories
        }
        files = dict.fromkeys(
            choice.filename for questions in choices.values() for choice in questions
        )
        place = {file: i for i, file in enumerate(files)}
        paths = [os.path.join(self.images, file) for file in files]
        embedded = embed_files(model, paths, self.max_num_patches)
        accuracies = {}
        for category, questions in choices.items():
            captions = [text for choice in questions for text in (choice.caption, choice.negative)]
            texts = embed_captions(model, captions, self.full_stop).reshape(len(questions), 2, -1)
            images = embedded[[place[choice.filename] for choice in questions]]
            scores = np.einsum("ne,nce->nc", images, texts, dtype=np.float64)
            accuracies[category] = float(np.mean(scores[:, 0] > scores[:, 1]))
        return {"mean": float(np.mean(list(accuracies.values())))} | accuracies


def read_choices(path: str) -> list[Choice]:
    """Reads one category's file.

    Args:
      path: local or `gs://`.

    Raises:
      ValueError: the file is missing, malformed or empty.
    """
    questions = read_json(path)
    if not isinstance(questions, dict) or not questions:
        raise ValueError(
            f"{path}: expected an object of questions by id, as SugarCrepe publishes, found "
            f"{questions!r:.60}"
        )
    choices = []
    for key, entry in questions.items():
        fields = ("filename", "caption", "negative_caption")
        values = [entry.get(field) for field in fields] if isinstance(entry, dict) else []
        texts = [text for text in values if isinstance(text, str)]
        if len(texts) != len(fields):
            raise ValueError(
                f"{path}: question {key!r} has no texts {', '.join(fields)}, found {entry!r:.60}"
            )
        choices.append(Choice(*texts))
    return choices
