"""The file `siglip2 embed` writes, in parts that survive an interruption.

While a run is under way its rows lie in `OUT.partial/`. A run with the same items and settings
continues after the last part; `finish` joins the parts into OUT in one step and removes them. OUT
is a NumPy archive of `embeddings` [n, E] float32; of the items' names, joined in UTF-8, in `items`,
where item i is `items[offsets[i] : offsets[i + 1]]`; and of `settings`, a text of JSON.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float32

from siglip2_jax.fingerprint import fingerprint
from siglip2_jax.outputs import behind_links, is_special, open_output
from siglip2_jax.preprocess.decode import ImageError
from siglip2_jax.resumable import ROWS_PER_PART, Rows, claim, compare, write_errors
from siglip2_jax.strings import Strings

_WAY_OUT = "pass --overwrite to start anew, or another --out"


class Embeddings(NamedTuple):
    """Content of an embedding file.

    Attributes:
      embeddings: a row of unit length for each item.
      items: paths or texts.
      settings: what decided the numbers.
    """

    embeddings: Float32[np.ndarray, "n E"]
    items: Strings
    settings: dict[str, Any]


def read_embeddings(path: str | os.PathLike[str]) -> Embeddings:
    """Reads a file that `siglip2 embed` has written, local or `gs://`.

    Raises:
      ValueError: it is something else.
    """
    names = "embeddings", "items", "offsets", "settings"
    embeddings, data, offsets, settings = _read(epath.Path(path), *names)
    return Embeddings(embeddings, Strings(data, offsets), json.loads(str(settings)))


def _read(path: epath.Path, *names: str) -> list[np.ndarray]:
    """Some arrays of an embedding file."""
    try:
        with path.open("rb") as stream, np.load(stream) as file:
            return [file[name] for name in names]
    except (KeyError, IndexError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} was not written by `siglip2 embed`; give another file, or replace this one by "
            "its option --overwrite"
        ) from error


class EmbeddingWriter:
    """Collects a row or an error per item, in order. A context manager: leaving it saves.

    Attributes:
      complete: whether OUT is already there, made from the same items and settings.
    """

    def __init__(
        self,
        out: str | os.PathLike[str],
        items: Sequence[str],
        settings: dict[str, Any],
        width: int,
        *,
        overwrite: bool = False,
        items_per_part: int = ROWS_PER_PART,
    ):
        """Looks for an earlier run.

        Args:
          out: the `.npz` file to write, local or `gs://`.
          items: what is embedded: paths or texts.
          settings: what decides the numbers.
          width: E, the size of a row.
          overwrite: forget an earlier run and replace its file.
          items_per_part: how many items the end of the process can cost.

        Raises:
          ValueError: OUT, or the parts of an interrupted run, came from other items or settings.
        """
        self.out = out = epath.Path(out)
        if out.suffix != ".npz" or is_special(behind_links(out)):
            raise ValueError(f"the output is {out}; expected a file whose name ends in .npz")
        self.errors = out.with_name(out.name + ".errors.jsonl")
        self.items, self.width = items, width
        self.settings = {"items": len(items), **settings, "items_hash": fingerprint(items)}
        parts = out.with_name(out.name + ".partial")
        if overwrite:
            parts.rmtree(missing_ok=True)
        self.complete = out.exists() and not overwrite
        if self.complete:
            (before,) = _read(out, "settings")
            compare(out, json.loads(str(before)), self.settings, _WAY_OUT)
        else:
            claim(parts / "settings.json", self.settings, _WAY_OUT)
        self._rows = Rows(None if self.complete else parts, width, rows_per_part=items_per_part)

    @property
    def done(self) -> int:
        """Number of items that are dealt with."""
        return len(self.items) if self.complete else len(self._rows)

    def __enter__(self) -> EmbeddingWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.complete:
            self._rows.__exit__(kind, error, trace)

    def add(self, row: np.ndarray | ImageError) -> None:
        """Takes the next item's row, or why it has none."""
        if isinstance(row, ImageError):
            self._rows.add(None, str(row))
        else:
            self._rows.add(row)

    def finish(self) -> dict[str, Any]:
        """Joins the parts into OUT, lists errors beside it, and removes the parts.

        Returns:
          A summary: output, counts, settings.
        """
        if not self.complete:
            self._rows.save()
            self._join()
            self.complete = True
        (offsets,) = _read(self.out, "offsets")
        embedded = len(offsets) - 1
        return {
            "out": str(self.out),
            "embedded": embedded,
            "width": self.width,
            "skipped": len(self.items) - embedded,
            "errors": str(self.errors) if self.errors.exists() else None,
            "settings": self.settings,
        }

    def _join(self) -> None:
        """Streams the parts into one file: never more than a part in memory."""
        notes = list(zip(self.items, self._rows.notes, strict=True))
        items = Strings.join(item for item, note in notes if note is None)
        errors = [{"item": x, "error": note} for x, note in notes if note is not None]
        write_errors(self.errors, errors)
        others = {
            "items": items.data,
            "offsets": items.offsets,
            "settings": json.dumps(self.settings),
        }
        with open_output(self.out) as stream, zipfile.ZipFile(stream, "w") as archive:
            with archive.open("embeddings.npy", "w", force_zip64=True) as file:
                shape = len(items), self.width
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                start = 0
                for block in self._rows.blocks():
                    good = [note is None for _, note in notes[start : start + len(block)]]
                    file.write(block[good].astype("<f4").tobytes())
                    start += len(block)
            for name, array in others.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)
        self._rows.remove()
