"""COCO and Flickr30k in Karpathy's splits, on which published retrieval numbers are measured.

`dataset_coco.json` and `dataset_flickr30k.json` of Karpathy & Fei-Fei 2015 (arXiv 1412.2306,
`caption_datasets.zip`): `{"images": [{"split", "filename", "filepath" (COCO only), "sentences":
[{"raw"}]}]}`. Test splits: 5,000 and 1,000 images. COCO's training split is "train" and "restval"
together.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from etils import epath

from siglip2_jax.data.example import make_example
from siglip2_jax.data.sources import Examples
from siglip2_jax.data.text import read_json


@dataclasses.dataclass(frozen=True)
class Karpathy:
    """One split of such a file, as a source of examples.

    Attributes:
      path: the JSON file, local or `gs://`.
      images: directory of the images; COCO's lie in `val2014` and `train2014` below it.
      split: "test", "val", "train" or "restval".
    """

    path: str
    images: str
    split: str = "test"

    def open(self) -> Examples:
        """Reads the captions; images are read one by one later, a missing one is an OSError.

        Raises:
          ValueError: see `read_karpathy`.
        """
        return _KarpathyExamples(*read_karpathy(self.path, self.images, self.split))


def read_karpathy(
    path: str, images: str, split: str = "test"
) -> tuple[list[str], list[tuple[str, ...]]]:
    """Images of a split and the captions of each, unchanged: repeated ones are kept.

    Args:
      path: the JSON file, local or `gs://`.
      images: directory of the images.
      split: which one.

    Returns:
      Paths of the images, and their captions in the same order.

    Raises:
      ValueError: the file is missing or malformed, or has no image in this split.
    """
    dataset = read_json(path)
    entries = dataset.get("images") if isinstance(dataset, dict) else None
    if not isinstance(entries, list):
        raise ValueError(
            f'{path}: expected an object with a list "images", as in Karpathy\'s '
            f"dataset_coco.json, found {dataset!r:.60}"
        )
    paths, captions, splits = [], [], set()
    for i, entry in enumerate(entries):
        try:
            entry_split, file, texts = _read_entry(entry)
        except (KeyError, TypeError) as error:
            raise ValueError(
                f'{path}: image {i} has no texts "split", "filename" and "sentences" with a "raw" '
                f"each ({type(error).__name__}: {error}), found {entry!r:.60}"
            ) from error
        splits.add(entry_split)
        if entry_split == split:
            paths.append(os.path.join(images, file))
            captions.append(texts)
    if not paths:
        raise ValueError(
            f"{path}: none of its {len(entries)} images is in the split {split!r}; it has "
            f"{', '.join(map(repr, sorted(splits))) or 'none'}"
        )
    return paths, captions


def _read_entry(entry: dict[str, Any]) -> tuple[str, str, tuple[str, ...]]:
    """Split, file below the images' directory, and captions; KeyError or TypeError if malformed."""
    texts = tuple(sentence["raw"] for sentence in entry["sentences"])
    file = os.path.join(entry.get("filepath", ""), entry["filename"])
    if strange := [x for x in (entry["split"], *texts) if not isinstance(x, str)]:
        raise TypeError(f"{strange[0]!r:.40} is no text")
    return entry["split"], file, texts


class _KarpathyExamples:
    def __init__(self, paths: list[str], captions: list[tuple[str, ...]]) -> None:
        self._paths, self._captions = paths, captions

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        path = self._paths[index]
        return make_example(epath.Path(path).read_bytes(), self._captions[index], path, {})
