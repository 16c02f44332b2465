"""Images with captions of one's own, split into those to train on and those held out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal

from etils import epath

from siglip2_jax.data.files import find_shards
from siglip2_jax.data.items.kinds import USUAL_CAPTIONS, USUAL_IMAGES, USUAL_PATHS, choose
from siglip2_jax.data.parquet import SUFFIX as PARQUET
from siglip2_jax.data.parquet import Parquet
from siglip2_jax.data.parquet_footer import check_pyarrow
from siglip2_jax.data.sources import Examples, Folder, Source
from siglip2_jax.data.table import SUFFIXES as TABLES
from siglip2_jax.data.table import Table, table_columns

CAPTIONS = "captions.jsonl"
SPLIT = "split"
FORMS = (
    f"a folder with {CAPTIONS} and images, a .csv, .tsv or .jsonl table with columns image and "
    "caption, or Parquet files; or a folder with one of these"
)


@dataclass(frozen=True)
class Pairs:
    """Part of a small set of images with captions, in the form that it is in.

    Rows of the same image become one example with all their captions. A column `split` says which
    images are trained on: "train"; all others are held out. Without the column an image's bytes
    decide, so that it stays in its part wherever the set is and whatever is added.

    Opening reads all images, which suits thousands and not millions of them.

    Attributes:
      path: a folder with `captions.jsonl` and `images` (see `Folder`), a table of paths (see
        `Table`), or Parquet files; or a folder with one of these.
      part: "train", or "held_out".
      share: of the images that are held out, about; it is not read where there is a column `split`.
    """

    path: str
    part: Literal["train", "held_out"] = "train"
    share: float = 0.15

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"Pairs.share is {self.share}; it is a share between 0 and 1")

    def open(self) -> Examples:
        """Reads all images once, and finds those of the part.

        Raises:
          ValueError: the path holds no such set, or no image is in the part.
        """
        examples = find_source(self.path).open()
        images: dict[bytes, _Image] = {}
        for row in range(len(examples)):
            try:
                example = examples[row]
            except ValueError:  # training counts it as a bad example
                images[f"row {row}".encode()] = _Image(row)
                continue
            image = images.setdefault(_digest(example), _Image(row))
            image.captions |= dict.fromkeys(example["captions"])
            image.held_out |= _is_held_out(example, self.share)
        held_out = self.part == "held_out"
        chosen = [image for image in images.values() if image.held_out == held_out]
        if not chosen:
            raise ValueError(
                f"{self.path}: {'none' if held_out else 'each'} of its {len(images)} images is "
                f'held out; give rows a column {SPLIT!r}, "train" where an image is trained on and '
                '"val" elsewhere, or add images'
            )
        return _Part(examples, chosen)


def find_source(path: str) -> Source:
    """The source that reads a set of images with captions, by what is there.

    Raises:
      ValueError: there is no such set, or several.
    """
    place = epath.Path(path)
    if place.is_dir():
        if (place / CAPTIONS).is_file():
            return Folder(path)
        names = sorted(x.name for x in place.iterdir())
        tables = [name for name in names if PurePath(name).suffix.lower() in TABLES]
        if len(tables) == 1:
            return _table(str(place / tables[0]))
        if tables or not any(name.endswith(PARQUET) for name in names):
            listing = ", ".join(tables or names[:8]) or "nothing"
            raise ValueError(f"{path} holds {listing}; expected {FORMS}")
        return _parquet(path)
    if place.suffix.lower() in TABLES:
        return _table(path)
    if place.suffix.lower() == PARQUET:
        return _parquet(path)
    raise ValueError(f"there is no set of images with captions at {path}; expected {FORMS}")


def _table(path: str) -> Table:
    names = table_columns(path)
    image = choose(None, USUAL_PATHS, names, path) or USUAL_PATHS[0]
    return Table(path, image, choose(None, USUAL_CAPTIONS, names, path) or USUAL_CAPTIONS[0])


def _parquet(path: str) -> Parquet:
    check_pyarrow()
    from pyarrow.parquet import read_schema

    file = find_shards(path, PARQUET)[0]
    names = read_schema(file).names
    image = choose(None, USUAL_IMAGES, names, file) or USUAL_IMAGES[0]
    caption = choose(None, USUAL_CAPTIONS, names, file) or USUAL_CAPTIONS[0]
    return Parquet(path, image, caption, fields=(SPLIT,) if SPLIT in names else ())


def _digest(example: dict[str, Any]) -> bytes:
    return hashlib.blake2b(example["image"], digest_size=8).digest()


def _is_held_out(example: dict[str, Any], share: float) -> bool:
    if isinstance(split := example.get(SPLIT), str):
        return split != "train"
    return int.from_bytes(_digest(example), "big") < share * 2**64


@dataclass
class _Image:
    """An image: its first row, the captions of all its rows, and its part."""

    row: int
    captions: dict[str, None] = field(default_factory=dict)
    held_out: bool = False


class _Part:
    """Examples of a part, each image once."""

    def __init__(self, examples: Examples, images: list[_Image]) -> None:
        self._examples, self._images = examples, images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        image = self._images[index]
        return self._examples[image.row] | {"captions": tuple(image.captions)}
