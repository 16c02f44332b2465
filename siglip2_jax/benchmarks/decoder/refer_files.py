"""RefCOCO, RefCOCO+ and RefCOCOg as they are published: `refs(unc).p` and `instances.json`.

The layout of lichengunc/refer (Yu et al., arXiv 1608.00272; RefCOCOg: Mao et al., arXiv
1511.02283): a folder for each set with a pickled list `refs(<who made the splits>).p` and COCO's
annotations `instances.json`. A pickle can run any program when it is read, so this one is read by
a reader that refuses every name of a class or function: lists, dicts, texts and numbers have none.
"""

from __future__ import annotations

import io
import os
import pickle
from dataclasses import dataclass
from typing import Any

from etils import epath

from siglip2_jax.benchmarks.decoder.expressions import Expression, box_of_pixels
from siglip2_jax.data.text import read_json

# SigLIP 2's table 5 (arXiv 2502.14786): folder, who made the splits, and the splits measured.
PUBLISHED = (
    ("refcoco", "unc", ("val", "testA", "testB")),
    ("refcoco+", "unc", ("val", "testA", "testB")),
    ("refcocog", "umd", ("val", "test")),
)


@dataclass(frozen=True)
class Refer:
    """One split of one data set.

    Attributes:
      folder: holds `refs(<split_by>).p` and `instances.json`, local or `gs://`.
      images: directory of COCO's training images, of 2014 or of 2017 (the same under other names).
      split_by: who made the splits: "unc", "google" or "umd".
      split: "val", "testA" and "testB" of "unc"; "val" and "test" of the others; or "train".
    """

    folder: str
    images: str
    split_by: str = "unc"
    split: str = "val"

    def open(self) -> list[Expression]:
        """The expressions (`sent`, in the publishers' lower case).

        Raises:
          ValueError: a file is missing or malformed, the split is empty, or its first image is not
            in `images`.
        """
        refs = self._refs()
        split_refs = [ref for ref in refs if ref["split"] == self.split]
        if not split_refs:
            splits = ", ".join(sorted({repr(ref["split"]) for ref in refs}))
            raise ValueError(f"{self._path}: no split {self.split!r}; it has {splits or 'none'}")
        instances = os.path.join(self.folder, "instances.json")
        coco = read_json(instances)
        try:
            boxes = {x["id"]: x["bbox"] for x in coco["annotations"]}
            images = {x["id"]: (x["file_name"], x["width"], x["height"]) for x in coco["images"]}
            expressions = [
                expression
                for ref in split_refs
                for expression in self._expressions(ref, boxes, images)
            ]
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{self._path} and {instances} do not fit the published layout, or each other "
                f"({type(error).__name__}: {error}); unpack both from one archive"
            ) from error
        return self._named(expressions)

    def held_out(self) -> set[int | str]:
        """COCO's numbers of the images in any split but "train".

        Raises:
          ValueError: the file is missing or malformed.
        """
        return {ref["image_id"] for ref in self._refs() if ref["split"] != "train"}

    @property
    def _path(self) -> str:
        return os.path.join(self.folder, f"refs({self.split_by}).p")

    def _refs(self) -> list[dict[str, Any]]:
        refs = read_plain_pickle(self._path)
        fields = {"image_id", "ann_id", "split", "sentences"}
        if not (
            isinstance(refs, list) and all(isinstance(x, dict) and fields <= x.keys() for x in refs)
        ):
            raise ValueError(
                f"{self._path}: expected a list of dicts with {', '.join(sorted(fields))}, found "
                f"{refs!r:.80}"
            )
        return refs

    def _expressions(
        self, ref: dict[str, Any], boxes: dict[int, Any], images: dict[int, tuple[str, int, int]]
    ) -> list[Expression]:
        file, width, height = images[ref["image_id"]]
        label = f"{self.folder}, annotation {ref['ann_id']}"
        box = box_of_pixels(boxes[ref["ann_id"]], width, height, label)
        return [Expression(file, ref["image_id"], x["sent"], box) for x in ref["sentences"]]

    def _named(self, expressions: list[Expression]) -> list[Expression]:
        """Adds paths: `COCO_train2014_000000000009.jpg` is `000000000009.jpg` since 2017."""
        full = [x.image for x in expressions]
        short = [name.rpartition("_")[2] for name in full]
        for names in (full, short):
            if (epath.Path(self.images) / names[0]).is_file():
                return [
                    x._replace(image=os.path.join(self.images, name))
                    for x, name in zip(expressions, names, strict=True)
                ]
        raise ValueError(
            f"{self.images}: neither {full[0]} nor {short[0]} is there, the first image of "
            f"{self._path}; expected COCO's images, train2014 or train2017"
        )


def published_splits(root: str, images: str) -> dict[str, Refer]:
    """The eight columns of SigLIP 2's table 5, by names such as "refcoco+_testA".

    Args:
      root: holds the folders refcoco, refcoco+ and refcocog.
      images: directory of COCO's training images.
    """
    return {
        f"{folder}_{split}": Refer(os.path.join(root, folder), images, split_by, split)
        for folder, split_by, splits in PUBLISHED
        for split in splits
    }


def read_plain_pickle(path: str) -> Any:
    """Reads a pickle of nothing but lists, dicts, texts and numbers.

    Texts of Python 2 are read as UTF-8.

    Raises:
      ValueError: the file is missing or damaged, or names a class or function, which is not run.
    """
    file = epath.Path(path)
    if not file.is_file():
        raise ValueError(f"{path}: no such file; expected the data set's list of expressions")
    try:
        return _Plain(io.BytesIO(file.read_bytes()), encoding="utf-8", errors="replace").load()
    except Exception as error:  # whatever the reader trips over in damaged data
        raise ValueError(
            f"{path}: not a pickle of plain lists, dicts, texts and numbers ({error}); download it "
            "again from where the data set is published"
        ) from error


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")
