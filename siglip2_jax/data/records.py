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

import glob
import json
import os
import re
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from siglip2_jax import git_lfs
from siglip2_jax.data.example import as_captions, with_name
from siglip2_jax.data.files import find_shards
from siglip2_jax.data.sources import Examples

SUFFIX = ".arrayrecord"
_MAGIC = b"SIGLIP2\x01"
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})" + re.escape(SUFFIX) + "$")


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
        """Reads how many records each file has.

        Raises:
          ValueError: files are missing, unreadable, empty, or hold other records.
        """
        paths = find_shards(self.pattern, SUFFIX)
        if os.path.isdir(self.pattern):
            _check_complete(self.pattern, paths)
        examples = _RecordExamples(_open(paths), self.pattern)
        if not len(examples):
            raise ValueError(f"{self.pattern}: there are no records in {len(paths)} files")
        try:
            examples[0]
        except ValueError as error:
            raise ValueError(
                f"{error}; expected files written by `siglip2 data pack` (TFDS has a source of its "
                "own)"
            ) from error
        return examples


def _check_complete(directory: str, paths: list[str]) -> None:
    for path in paths:
        if match := _SHARD.search(path):
            count = int(match[2])
            family = f"{glob.escape(path[: match.start()])}-?????-of-{match[2]}{SUFFIX}"
            if (present := len(glob.glob(family))) != count:
                raise ValueError(
                    f"{directory} holds {present} of {count} files; finish packing it, or name the "
                    "files to use by a glob"
                )


def _open(paths: list[str]) -> Any:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    try:
        return ArrayRecordDataSource(paths)
    except RuntimeError as error:
        for path in paths:
            try:
                ArrayRecordDataSource([path])
            except RuntimeError as its_error:
                if git_lfs.is_pointer_file(path):
                    raise ValueError(f"{path} is {git_lfs.POINTER}") from error
                raise ValueError(f"{path} is not a whole ArrayRecord file ({its_error})") from error
        raise


class _RecordExamples:
    def __init__(self, records: Any, pattern: str) -> None:
        self._records, self._pattern = records, pattern

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        try:
            return decode_example(self._records[index])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise with_name(error, f"{self._pattern}, record {index}") from error
