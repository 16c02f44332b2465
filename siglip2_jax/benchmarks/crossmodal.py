"""XM3600: retrieval in 36 languages (Crossmodal-3600, Thapliyal et al. 2022, arXiv 2205.12522).

As in SigLIP 2 (arXiv 2502.14786, section 3.1): recall within each language, all captions of every
image in the pool, then the mean over the languages.
"""

from __future__ import annotations

import dataclasses
import json
import os

import numpy as np
from etils import epath

from siglip2_jax.data.text import read_rows
from siglip2_jax.evals.base import Model
from siglip2_jax.evals.recall import Ties, check_ties
from siglip2_jax.evals.retrieval import (
    FullStop,
    embed_captions,
    embed_files,
    end_sentence,
    retrieval_metrics,
)

LANGUAGES: tuple[str, ...] = tuple(
    "ar bn cs da de el en es fa fi fil fr he hi hr hu id it ja ko mi nl no pl pt quz ro ru sv sw "
    "te th tr uk vi zh".split()
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossModal:
    """Recall at 1, 5 and 10 in every language and their mean, image to text and text to image.

    Attributes:
      path: the directory with the published files unpacked.
      captions: name of the file of JSON lines in it.
      images: name of the subfolder of images, `<image/key>.jpg` each.
      languages: which; 36 are published.
      name: prefix of its numbers.
      every: steps between two measurements.
      max_num_patches: token budget at native resolution.
      full_stop: what is done about the full stop at the end of captions; see
        `retrieval.end_sentence`.
      ties: which equal scores come before a partner's; see `recall.recall_ranks`.
    """

    path: str
    captions: str = "captions.jsonl"
    images: str = "images"
    languages: tuple[str, ...] = LANGUAGES
    name: str = "xm3600"
    every: int = 1000
    max_num_patches: int = 256
    full_stop: FullStop = "keep"
    ties: Ties = "against"

    def __post_init__(self) -> None:
        end_sentence("", self.full_stop)  # an unknown choice is refused at once
        check_ties(self.ties)

    def __call__(self, model: Model) -> dict[str, float]:
        """The means, as `image_to_text@k` and `text_to_image@k`, then `<language>/...` of each.

        All are from 0 to 1; images are embedded once. Images that cannot be read count as wrong,
        and so does an image without captions in a language.

        Raises:
          ValueError: see `read_captions`; or there are no images in the subfolder.
        """
        keys, captions = read_captions(os.path.join(self.path, self.captions), self.languages)
        paths = [os.path.join(self.path, self.images, f"{key}.jpg") for key in keys]
        images = embed_files(model, paths, self.max_num_patches)
        metrics = {}
        for language, lists in captions.items():
            texts = [text for image_captions in lists for text in image_captions]
            owner = np.repeat(
                np.arange(len(keys)), [len(image_captions) for image_captions in lists]
            )
            rows = embed_captions(model, texts, self.full_stop)
            metrics[language] = retrieval_metrics(images, rows, owner, ties=self.ties)
        names = next(iter(metrics.values()))
        mean = {
            key: float(np.mean([recalls[key] for recalls in metrics.values()])) for key in names
        }
        return mean | {
            f"{language}/{key}": value
            for language, recalls in metrics.items()
            for key, value in recalls.items()
        }


def read_captions(
    path: str, languages: tuple[str, ...] = LANGUAGES
) -> tuple[list[str], dict[str, list[tuple[str, ...]]]]:
    """Reads the published `captions.jsonl`: a line per image, `{"image/key", "en": {"caption"}}`.

    Args:
      path: the file, local or `gs://`.
      languages: which to read; other keys of a line are ignored.

    Returns:
      The images' keys, and for each language the captions of each image in the same order.

    Raises:
      ValueError: the file is missing or malformed, a key comes twice, or a language has no caption
        at all.
    """
    file = epath.Path(path)
    if not file.is_file():
        raise ValueError(f"{path}: no such file; expected XM3600's captions.jsonl")
    keys: dict[str, int] = {}
    captions: dict[str, list[tuple[str, ...]]] = {language: [] for language in languages}
    for number, row in read_rows(path):
        place = f"{path}, line {number}"
        key = row.get("image/key") if isinstance(row, dict) else None
        if not isinstance(key, str):
            raise ValueError(
                f'{place}: expected an object with a text "image/key", found {row!r:.60}'
            )
        if keys.setdefault(key, number) != number:
            raise ValueError(
                f"{place}: the image {key} was on line {keys[key]} already; expected each once"
            )
        for language, lists in captions.items():
            lists.append(_language_captions(row, language, place))
    for language, lists in captions.items():
        if not any(lists):
            raise ValueError(
                f"{path}: no image has a caption in the language {language!r}; leave it out of "
                "languages, or download the file again"
            )
    return list(keys), captions


def _language_captions(row: dict, language: str, place: str) -> tuple[str, ...]:
    """An image's captions in a language; empty where the line has no such key."""
    entry = row.get(language, {"caption": []})
    texts = entry.get("caption") if isinstance(entry, dict) else None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f'{place}: expected {{"caption": [texts]}} for the language {language!r}, found '
            f"{json.dumps(entry, ensure_ascii=False)[:60]}"
        )
    return tuple(texts)
