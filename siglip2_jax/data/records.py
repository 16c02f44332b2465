"""ArrayRecord files of examples: what `pack` writes, for fast random access at any size.

A record is, in this order:

- 8 bytes: `SIGLIP2` and the version, 1;
- 4 bytes: the header's length, unsigned, little-endian;
- the header, a JSON object in UTF-8: `fields`, the example's fields that JSON can hold, and
  `blobs`, the names and sizes in bytes of those that are bytes (`image` among them);
- the blobs, one after the other.

So a record reads without this package, and holds neither pickle nor protocol buffers.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from siglip2_jax.data.example import as_captions
from siglip2_jax.data.files import find_shards
from siglip2_jax.data.record_files import RecordExamples, RecordFiles, count_records
from siglip2_jax.data.sources import Examples
from siglip2_jax.data.text import read_json
from siglip2_jax.outputs import write_whole
from siglip2_jax.strings import Strings

SUFFIX = ".arrayrecord"
COUNTS = ".counts.json"
_MAGIC = b"SIGLIP2\x01"
_SHARD = re.compile(r"-(\d{5,})-of-(\d{5,})" + re.escape(SUFFIX) + "$")


def encode_example(example: dict[str, Any]) -> bytes:
    """An example as the bytes of a record.

    NumPy arrays and scalars become lists and numbers, tuples lists.

    Raises:
      ValueError: a field is neither bytes nor something that JSON holds.
    """
    blobs = {key: value for key, value in example.items() if isinstance(value, bytes)}
    fields = {key: value for key, value in example.items() if key not in blobs}
    header = {"fields": fields, "blobs": [[key, len(blob)] for key, blob in blobs.items()]}
    try:
        text = json.dumps(header, ensure_ascii=False, default=as_json).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{example.get('name', 'an example')}: a field cannot be written as JSON ({error})."
        ) from error
    return b"".join((_MAGIC, struct.pack("<I", len(text)), text, *blobs.values()))


def decode_example(record: bytes) -> dict[str, Any]:
    """The example of a record.

    Raises:
      ValueError: the bytes are no record of this format, or damaged.
    """
    start = len(_MAGIC) + 4
    if not record.startswith(_MAGIC) or len(record) < start:
        raise ValueError(f"not a record of this format (it starts with {record[:8]!r})")
    end = start + int.from_bytes(record[len(_MAGIC) : start], "little")
    header = json.loads(record[start:end])
    example = header["fields"]
    example["captions"] = as_captions(example["captions"], example["name"])
    for key, size in header["blobs"]:
        example[key] = record[end : end + size]
        end += size
    if end != len(record):
        raise ValueError(f"the record has {len(record)} bytes, but its header describes {end}")
    return example


def as_json(value: object) -> Any:
    """The value of a NumPy array or scalar as JSON has it, for `json.dumps`.

    Raises:
      TypeError: it is something else.
    """
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not a kind of JSON value")


@dataclass(frozen=True)
class Records:
    """ArrayRecord files written by `pack`.

    Attributes:
      pattern: a file, a directory of them (all of a pack must be there), or a glob; local.
    """

    pattern: str

    def open(self) -> Examples:
        """Finds how many records each file has: in the pack's `<name>.counts.json`, or in the file.

        Raises:
          ValueError: files are missing, unreadable, empty, or hold other records.
          OSError: a file cannot be read.
        """
        paths = find_shards(self.pattern, SUFFIX)
        packs = find_packs(paths)
        check_packs(self.pattern, packs)
        counts = _counts(paths, packs)
        files = RecordFiles(Strings.join(paths), np.zeros_like(counts), counts, counts)
        if not len(files):
            raise ValueError(f"{self.pattern}: there are no records in {len(paths)} files")
        examples = _Examples(files=files, pattern=self.pattern)
        try:
            examples[0]
        except ValueError as error:
            raise ValueError(
                f"{error}; expected files written by `siglip2 data pack` (TFDS has a source of its "
                "own)"
            ) from error
        return examples


def write_counts(paths: Sequence[str], file: str | os.PathLike[str]) -> None:
    """Writes down how many records each file of a whole pack has, so that none is opened for it.

    Args:
      paths: of the files, in order.
      file: `<name>.counts.json` beside them.
    """
    write_whole(file, json.dumps({"records": count_records(paths).tolist()}))


def find_packs(paths: Sequence[str]) -> dict[tuple[str, int], list[tuple[int, int]]]:
    """Files of packs, by the pack's path and number of files: shard, and place in `paths`."""
    packs = defaultdict(list)
    for i, path in enumerate(paths):
        if match := _SHARD.search(path):
            packs[path[: match.start()], int(match[2])].append((int(match[1]), i))
    return packs


def check_packs(pattern: str, packs: Mapping[tuple[str, int], Sequence[Any]]) -> None:
    """Refuses a directory that lacks files of a pack; a file or a glob may name some of them.

    Args:
      pattern: what the user typed.
      packs: those of the files that it means, as `find_packs` gives them.

    Raises:
      ValueError: files are missing.
    """
    if not os.path.isdir(pattern):
        return
    for (_, count), files in packs.items():
        if len(files) != count:
            raise ValueError(
                f"{pattern} holds {len(files)} of {count} files; finish packing it, or name the "
                "files to use by a glob"
            )


def _counts(
    paths: Sequence[str], packs: Mapping[tuple[str, int], Sequence[tuple[int, int]]]
) -> Int64[np.ndarray, " files"]:
    """Numbers of records, of files of packs as `write_counts` noted them."""
    counts = np.full(len(paths), -1, np.int64)
    for (prefix, count), files in packs.items():
        if os.path.isfile(file := f"{prefix}{COUNTS}"):
            noted = read_json(file)
            noted = noted.get("records", ()) if isinstance(noted, dict) else ()
            if len(noted) == count and all(isinstance(x, int) and x >= 0 for x in noted):
                shards, places = np.array(files).T
                counts[places] = np.array(noted)[shards % count]
    (unknown,) = np.nonzero(counts < 0)
    counts[unknown] = count_records([paths[i] for i in unknown.tolist()])
    return counts


@dataclass(frozen=True, kw_only=True)
class _Examples(RecordExamples):
    pattern: str

    def name(self, index: int) -> str:
        return f"{self.pattern}, record {index}"

    def make(self, record: bytes, name: str) -> dict[str, Any]:
        try:
            return decode_example(record)
        except (KeyError, TypeError) as error:
            raise ValueError(f"its header is malformed ({error!r})") from error
