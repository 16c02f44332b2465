"""Data sources of a config: a folder with captions, examples in memory, a weighted mixture.

`tars.Tars`, `records.Records` and `tfds.Tfds` are the other sources.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from etils import epath

from siglip2_jax.data.example import CAPTION_FIELDS, make_example, naming, row_captions
from siglip2_jax.data.text import read_rows


@runtime_checkable
class Examples(Protocol):
    """Opened data: random access to examples (see `data.example`).

    Item i is always the same example. Objects may be pickled, and read from several threads. A
    corrupt item raises ValueError or OSError with a sentence that names it, or holds bytes that do
    not decode.
    """

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """One example, 0 <= index < len."""
        ...


@runtime_checkable
class Blocked(Examples, Protocol):
    """Opened data that is read best in blocks: examples that stand together, one request each.

    Block b holds examples [b * block_size, (b + 1) * block_size); the last one may be shorter.
    """

    @property
    def block_size(self) -> int:
        """Number of examples of a block, at least 1."""
        ...

    @property
    def remote(self) -> bool:
        """True where one example costs as much as its block, as in a store or a row group."""
        ...

    def read_block(self, block: int, /) -> Sequence[dict[str, Any]]:
        """The examples of a block, from memory once this returns.

        Taking an item may raise ExampleError, for content that cannot be used; reading raises
        SourceError, for what is wrong with the machine, the network or the store.
        """
        ...


@runtime_checkable
class Described(Examples, Protocol):
    """Opened data that knows all of an example but its image without reading it."""

    def without_image(self, index: int, /) -> dict[str, Any]:
        """One example, 0 <= index < len, whose `image` is empty; no file is read."""
        ...


@runtime_checkable
class Incomplete(Protocol):
    """Opened data whose files hold samples that it leaves out."""

    @property
    def left_out(self) -> int:
        """Number of samples that are left out."""
        ...


@runtime_checkable
class Source(Protocol):
    """Source of examples: cheap to make and to pickle, so that configs can hold it."""

    def open(self) -> Examples:
        """Finds the files and reads what is needed to look up single examples.

        Raises:
          ValueError or OSError: something is missing or malformed; one sentence.
        """
        ...


@dataclass(frozen=True)
class Folder:
    """A directory of images with a file of JSON lines, one object an image.

    A row's `file` is the image's path in the images' subfolder; its captions are in `captions` (a
    list), `caption` or `text` (texts). Other keys become fields of the example, except the names
    in `example.RESERVED`.

    Attributes:
      path: the directory, local or `gs://`.
      captions: name of the file of JSON lines.
      images: name of the images' subfolder.
      where: key and value pairs that a row must have to be used, such as `("split", "train")`.
      template: makes the caption of a row's fields, for images with a class and no caption: "a
        image of a {name}". Any field of the row may be used, and its captions are not.
    """

    path: str
    captions: str = "captions.jsonl"
    images: str = "images"
    where: tuple[tuple[str, Any], ...] = ()
    template: str | None = None

    def open(self) -> Examples:
        """Reads the rows; images are read one by one later.

        Raises:
          ValueError: the file is missing or malformed, or there is no row to use.
        """
        path = epath.Path(self.path) / self.captions
        if not path.is_file():
            raise ValueError(f"{path}: no such file; expected JSON lines with a row for each image")
        rows = [
            row
            for row in _read_rows(path)
            if all(row.get(key) == value for key, value in self.where)
        ]
        if not rows:
            condition = " and ".join(f"{key}={value!r}" for key, value in self.where)
            raise ValueError(f"{path}: no row{f' has {condition}' if condition else 's'}")
        if self.template is not None:
            row_captions(rows[0], self.template, str(path))
        elif not any(row.get(key) for row in rows for key in CAPTION_FIELDS):
            raise ValueError(
                f"{path}: no row has one of the keys {', '.join(CAPTION_FIELDS)}; add captions, or "
                'give a template such as "a photo of a {name}"'
            )
        return _FolderExamples(str(epath.Path(self.path) / self.images), rows, self.template)


def _read_rows(path: epath.Path) -> list[dict[str, Any]]:
    """Rows of JSON, each an object with a text `file`."""
    rows = []
    for number, row in read_rows(path):
        if not isinstance(row, dict) or not isinstance(row.get("file"), str):
            raise ValueError(
                f'{path}, line {number}: expected an object with a text "file", the path of an '
                f"image, found {row!r:.60}"
            )
        rows.append(row)
    return rows


class _FolderExamples:
    def __init__(self, images: str, rows: list[dict[str, Any]], template: str | None) -> None:
        self._images, self._rows, self._template = images, rows, template
        seen: dict[str, int] = {}
        self._repeats = [seen.setdefault(row["file"], i) != i for i, row in enumerate(rows)]

    def __len__(self) -> int:
        return len(self._rows)

    def without_image(self, index: int, /) -> dict[str, Any]:
        row, path = self._rows[index], self._path(index)
        name = f"{path}#{index}" if self._repeats[index] else str(path)
        with naming(name):
            return make_example(b"", row_captions(row, self._template, name), name, row)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        example = self.without_image(index)
        with naming(example["name"]):
            try:
                return example | {"image": self._path(index).read_bytes()}
            except FileNotFoundError as error:
                raise ValueError("there is no such file") from error

    def _path(self, index: int) -> epath.Path:
        return epath.Path(self._images) / self._rows[index]["file"]


@dataclass(frozen=True, repr=False)
class Memory:
    """Examples as they are, for tests and small experiments."""

    examples: tuple[dict[str, Any], ...]

    def open(self) -> Examples:
        """The examples.

        Raises:
          ValueError: there are none, or one lacks `image`, `captions` or `name`.
        """
        if not self.examples:
            raise ValueError("there are no examples in memory; give at least one")
        for i, example in enumerate(self.examples):
            if missing := {"image", "captions", "name"} - example.keys():
                raise ValueError(f"example {i} in memory lacks {', '.join(sorted(missing))}")
        return self.examples

    def __repr__(self) -> str:
        digest = hashlib.sha256(repr(self.examples).encode()).hexdigest()
        return f"Memory({len(self.examples)} examples, {digest[:16]})"


@dataclass(frozen=True)
class Mixture:
    """Several sources at once, each repeated for as long as training goes on.

    Attributes:
      parts: sources, or mixtures, each with its weight: its share of the examples drawn, up to
        normalisation. Shares hold to about one percent, within any few hundred examples.
    """

    parts: tuple[tuple[Source | Mixture, float], ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("a mixture needs at least one part")
        for source, weight in self.parts:
            if not (weight > 0 and math.isfinite(weight)):
                raise ValueError(
                    f"the weight of {source!r:.80} in a mixture must be above 0, got {weight}"
                )
