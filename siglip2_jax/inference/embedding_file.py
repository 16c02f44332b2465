"""The file `siglip2 embed` writes, in parts that survive an interruption.

While a run is under way its rows lie in `OUT.partial/`. A run with the same items and settings
continues after the last part; in the end the parts are joined into OUT in one step. OUT is a NumPy
archive of `embeddings` [n, E] float32; of the names of the items, joined in UTF-8, in `items`,
where item i is `items[offsets[i] : offsets[i + 1]]`; and of `settings`, a text of JSON.
"""

from __future__ import annotations

import json
import os
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
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

_DAMAGE = (
    *(KeyError, IndexError, TypeError, ValueError, EOFError, zipfile.BadZipFile, zlib.error),
    tokenize.TokenError,  # of NumPy, on headers that are no Python
)


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
    except _DAMAGE as error:
        raise ValueError(
            f"{path} was not written by `siglip2 embed`; give another file, or replace this one by "
            "its option --overwrite"
        ) from error


def write_embeddings(
    out: str | os.PathLike[str],
    items: Sequence[str],
    settings: dict[str, Any],
    width: int,
    embed: Callable[[Sequence[str]], Iterable[np.ndarray | ImageError]],
    *,
    overwrite: bool = False,
    items_per_part: int = ROWS_PER_PART,
) -> dict[str, Any]:
    """Embeds items into a file, or goes on with it; items without a row are listed beside it.

    Args:
      out: the `.npz` file, local or `gs://`.
      items: what is embedded: paths or texts.
      settings: what decides the numbers.
      width: E, the size of a row.
      embed: gives a row, or why there is none, for each item; called with those that are left.
      overwrite: forget an earlier run and replace its file.
      items_per_part: how many items the end of the process can cost.

    Returns:
      A summary: output, counts, settings.

    Raises:
      ValueError: the file, or the parts of an interrupted run, came from other items or settings.
    """
    out = epath.Path(out)
    if out.suffix != ".npz" or is_special(behind_links(out)):
        raise ValueError(
            f"the output is {out}; expected a file whose name ends in .npz, or for images a "
            "directory, whose name has no ending"
        )
    errors, parts = (out.with_name(out.name + x) for x in (".errors.jsonl", ".partial"))
    settings = {"items": len(items), **settings, "items_hash": fingerprint(items)}
    if overwrite:
        parts.rmtree(missing_ok=True)
    if out.exists() and not overwrite:
        (before,) = _read(out, "settings")
        compare(out, json.loads(str(before)), settings, _WAY_OUT)
    else:
        claim(parts / "settings.json", settings, _WAY_OUT)
        with Rows(parts, width, rows_per_part=items_per_part) as rows:
            for row in embed(items[len(rows) :]):
                if isinstance(row, ImageError):
                    rows.add(None, str(row))
                else:
                    rows.add(row)
        notes = list(zip(items, rows.notes, strict=True))
        write_errors(errors, [{"item": x, "error": note} for x, note in notes if note is not None])
        good = Strings.join(item for item, note in notes if note is None)
        _join(out, good, rows, settings)
        rows.remove()
    (offsets,) = _read(out, "offsets")
    embedded = len(offsets) - 1
    return {
        "out": str(out),
        "embedded": embedded,
        "width": width,
        "skipped": len(items) - embedded,
        "errors": str(errors) if errors.exists() else None,
        "settings": settings,
    }


def _join(out: epath.Path, items: Strings, rows: Rows, settings: dict[str, Any]) -> None:
    """Streams the parts into one file: never more than a part in memory."""
    texts = {"items": items.data, "offsets": items.offsets, "settings": json.dumps(settings)}
    shape, notes = (len(items), rows.width), iter(rows.notes)
    with open_output(out) as stream, zipfile.ZipFile(stream, "w") as archive:
        with archive.open("embeddings.npy", "w", force_zip64=True) as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for block in rows.blocks():
                kept = [note is None for note in islice(notes, len(block))]
                file.write(block[kept].astype("<f4").tobytes())
        for name, array in texts.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)
