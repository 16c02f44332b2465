"""Check that the files of all shards are there, whole and of one run: the last step of a run."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from typing import NamedTuple

from etils import epath

from siglip2_jax.data.prefetch import thread_map
from siglip2_jax.inference.shards.manifest import (
    FOLDER,
    MERGED,
    SUFFIX,
    digest,
    directory_of,
    read_manifest,
    read_mark,
)
from siglip2_jax.inference.shards.schema import check_pyarrow
from siglip2_jax.inference.shards.write import TEMPORARY
from siglip2_jax.outputs import write_whole

_AHEAD = 64
_SHOWN = 10  # of the shards that are not there


class Merged(NamedTuple):
    """Counts of a run that is complete.

    Attributes:
      out: the directory.
      images: rows of all files.
      errors: rows without an embedding.
      files: names of the files in order, each with its number of rows.
    """

    out: str
    images: int
    errors: int
    files: dict[str, int]


def merge(out: str | os.PathLike[str]) -> Merged:
    """Makes sure that a run is complete, and writes that down in `merged.json`.

    What processes that were killed have left is removed.

    Raises:
      ValueError: the directory holds no run; or shards are not there, which the sentence lists.
      OSError: a file cannot be read.
    """
    check_pyarrow()
    directory = directory_of(out)
    settings = read_manifest(directory)
    folder = directory / FOLDER
    paths = list(folder.iterdir()) if folder.is_dir() else []
    files = sorted(path for path in paths if path.name.endswith(SUFFIX))
    marks = zip(files, thread_map(read_mark, files, _AHEAD), strict=True)
    found = {
        mark.shard: (path.name, mark)
        for path, mark in marks
        if mark is not None and mark.settings == digest(settings)
    }
    _check_complete(directory, settings["shards"], found.keys())
    in_order = [found[number] for number in range(settings["shards"])]
    record = {
        "settings": digest(settings),
        "images": sum(mark.rows for _, mark in in_order),
        "errors": sum(mark.errors for _, mark in in_order),
        "files": {name: mark.rows for name, mark in in_order},
    }
    write_whole(directory / MERGED, json.dumps(record, indent=1))
    for path in paths:
        if path.name.endswith(TEMPORARY):
            path.unlink(missing_ok=True)
    return read_merged(directory)


def read_merged(out: epath.Path) -> Merged:
    """The counts of a run that was found complete.

    Raises:
      ValueError: it was not, or the record is damaged.
    """
    settings = read_manifest(out)
    try:
        record = json.loads((out / MERGED).read_bytes())
        if record.pop("settings") != digest(settings):
            raise ValueError("it belongs to another run")
        return Merged(str(out), **record)
    except FileNotFoundError:
        raise ValueError(
            f"{out} is not known to be complete; run `siglip2 embed --merge --out {out}`"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{out / MERGED} is damaged ({error}); run `siglip2 embed --merge --out {out}`"
        ) from error


def _check_complete(out: epath.Path, count: int, numbers: Collection[int]) -> None:
    absent = [number for number in range(count) if number not in numbers]
    if absent:
        names = ", ".join(map(str, absent[:_SHOWN]))
        names += ", …" if len(absent) > _SHOWN else ""
        raise ValueError(
            f"{out} lacks {len(absent)} of {count} shards ({names}), or their files are damaged; "
            "run the same `siglip2 embed` again (shard s is of the share --shard i/n with i = s "
            "mod n), then merge"
        )
