"""Data sources of a config: a folder with captions, examples in memory, a weighted mixture.

`tars.Tars`, `records.Records` and `tfds.Tfds` are the other sources.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from etils import epath
from jaxtyping import Bool, Int64

from siglip2_jax.data.example import (
    CAPTION_FIELDS,
    SourceError,
    make_example,
    naming,
    row_captions,
)
from siglip2_jax.data.patience import of_example_file
from siglip2_jax.data.rows import JsonRows


@runtime_checkable
class Examples(Protocol):
    """Opened data: random access to examples (see `data.example`).

    Item i is always the same example. Objects may be pickled, and read from several threads. An
    item whose content cannot be used raises ValueError with a sentence that names it, or holds
    bytes that do not decode: it is replaced by another one. An OSError says that it could not be
    read at all, and stops the run, unless it passes.
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
        """Finds the rows; they and the images are read one by one later.

        Raises:
          ValueError: the file is missing or malformed, or there is no row to use.
        """
        path = epath.Path(self.path) / self.captions
        if not path.is_file():
            raise ValueError(f"{path}: no such file; expected JSON lines with a row for each image")
        files, has_captions = array("q"), False

        def keep(number: int, row: Any) -> bool:
            nonlocal has_captions
            if not isinstance(row, dict) or not isinstance(row.get("file"), str):
                raise ValueError(
                    f'{path}, line {number}: expected an object with a text "file", the path of an '
                    f"image, found {row!r:.60}"
                )
            if not all(row.get(key) == value for key, value in self.where):
                return False
            files.append(hash(row["file"]))
            has_captions = has_captions or any(map(row.get, CAPTION_FIELDS))
            return True

        rows = JsonRows(path, keep)
        if not len(rows):
            condition = " and ".join(f"{key}={value!r}" for key, value in self.where)
            raise ValueError(f"{path}: no row{f' has {condition}' if condition else 's'}")
        if self.template is not None:
            row_captions(rows[0], self.template, str(path))
        elif not has_captions:
            raise ValueError(
                f"{path}: no row has one of the keys {', '.join(CAPTION_FIELDS)}; add captions, or "
                'give a template such as "a photo of a {name}"'
            )
        return _FolderExamples(self, rows, find_repeats(np.array(files, np.int64)))


def find_repeats(values: Int64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """True where a value was there before."""
    repeats = np.ones(len(values), np.bool_)
    repeats[np.unique(values, return_index=True)[1]] = False
    return repeats


class _FolderExamples:
    def __init__(self, source: Folder, rows: JsonRows, repeats: Bool[np.ndarray, " n"]) -> None:
        self._source, self._rows, self._repeats = source, rows, repeats

    def __len__(self) -> int:
        return len(self._rows)

    def without_image(self, index: int, /) -> dict[str, Any]:
        return self._described(index)[0]

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        example, path = self._described(index)
        try:
            with of_example_file(path):
                return example | {"image": path.read_bytes()}
        except FileNotFoundError as error:
            captions = epath.Path(self._source.path) / self._source.captions
            raise SourceError(
                f"{path}: there is no such file; put it back, or remove its row from {captions}"
            ) from error

    def _described(self, index: int) -> tuple[dict[str, Any], epath.Path]:
        """An example without its image, and where that is."""
        row = self._rows[index]
        path = epath.Path(self._source.path) / self._source.images / row["file"]
        name = f"{path}#{index}" if self._repeats[index] else str(path)
        with naming(name):
            captions = row_captions(row, self._source.template, name)
            return make_example(b"", captions, name, row), path


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
