"""Files that a pack is written to: ArrayRecord files, and webdataset tars."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, Protocol, runtime_checkable

from siglip2_jax.data import records, tars

_MARKS = {
    b"\x89PNG": ".png",
    b"RIFF": ".webp",
    b"GIF8": ".gif",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}


@runtime_checkable
class Writer(Protocol):
    """Open file that takes encoded examples."""

    def write(self, item: Any, /) -> None:
        """Writes an example, encoded for this kind of file."""
        ...


@runtime_checkable
class ShardKind(Protocol):
    """Kind of file.

    Attributes:
      suffix: of the files' names.
    """

    suffix: str

    def encode(self, example: dict[str, Any], number: int) -> Any:
        """An example in the form that the writer takes.

        Args:
          example: what is written.
          number: its place in the pack.

        Raises:
          ValueError: a field has a value that cannot be kept.
        """
        ...

    def open(self, path: str) -> Any:
        """A context manager with a `Writer` of a new file.

        Raises:
          OSError: it cannot be written.
        """
        ...


class RecordShards:
    """ArrayRecord files (`data.records`)."""

    suffix = records.SUFFIX

    def encode(self, example: dict[str, Any], number: int) -> bytes:
        """The bytes of a record."""
        return records.encode_example(example)

    @contextmanager
    def open(self, path: str) -> Iterator[Writer]:
        """Opens a file whose records are compressed one by one."""
        from array_record.python.array_record_module import ArrayRecordWriter

        try:
            with closing(ArrayRecordWriter(path, "group_size:1")) as writer:
                yield writer
        except RuntimeError as error:
            raise OSError(f"{path} cannot be written ({error})") from error


class TarShards:
    """Webdataset tars: `000000017.jpg`, `.txt` with a caption, `.json` with all and the fields."""

    suffix = tars.SUFFIX

    def encode(self, example: dict[str, Any], number: int) -> list[tuple[str, bytes]]:
        """Names and data of an example's files."""
        fields = {key: value for key, value in example.items() if key != "image"}
        try:
            text = json.dumps(fields, ensure_ascii=False, default=records.as_json)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{example['name']}: a field cannot be written as JSON ({error}), all that tars "
                "keep; use ArrayRecord files."
            ) from error
        suffix = _MARKS.get(example["image"][:4], ".jpg")
        caption = next(iter(example["captions"]), "")
        files = {suffix: example["image"], ".txt": caption.encode(), ".json": text.encode()}
        return [(f"{number:09d}{suffix}", data) for suffix, data in files.items()]

    @contextmanager
    def open(self, path: str) -> Iterator[Writer]:
        """Opens a tar."""
        with tarfile.open(path, "w") as tar:
            yield _TarWriter(tar)


class _TarWriter:
    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar

    def write(self, item: list[tuple[str, bytes]], /) -> None:
        for name, data in item:  # of the year 1970: tars of the same examples are the same
            header = tarfile.TarInfo(name)
            header.size = len(data)
            self._tar.addfile(header, io.BytesIO(data))


KINDS: dict[str, ShardKind] = {"arrayrecord": RecordShards(), "tar": TarShards()}
