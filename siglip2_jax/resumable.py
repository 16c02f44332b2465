"""Jobs that go on where they were stopped: bound to their settings, saved in whole parts."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float

from siglip2_jax.outputs import open_output, write_once, write_whole

ROWS_PER_PART = 2048


def claim(record: str | os.PathLike[str], settings: Mapping[str, Any], way_out: str) -> None:
    """Binds a job to its settings: writes them down, or compares them with those of an earlier run.

    Of several processes that begin at once, one writes and the others compare.

    Args:
      record: the file of settings, local or `gs://`.
      settings: what decides the results, as plain data.
      way_out: what to do where they differ.

    Raises:
      ValueError: the job was begun with other settings, or the file is damaged.
    """
    record = epath.Path(record)
    if not record.exists() and write_once(record, json.dumps(settings, indent=1)):
        return
    try:
        before = json.loads(record.read_bytes())
    except ValueError as error:
        raise ValueError(f"{record} is damaged ({error}); {way_out}") from error
    compare(record, before, settings, way_out)


def compare(
    where: str | os.PathLike[str], before: Mapping[str, Any], now: Mapping[str, Any], way_out: str
) -> None:
    """Makes sure that results were made with these settings.

    Raises:
      ValueError: a setting is another one; the sentence names the first.
    """
    for key, value in now.items():
        if before.get(key) != value:
            raise ValueError(
                f"{where} was made with {key} {before.get(key)!r:.200} (now {value!r:.200}); "
                f"{way_out}"
            )


def missing(directory: str | os.PathLike[str], names: Iterable[str]) -> list[str]:
    """Lists the parts of a job that are not in its directory, which is read once."""
    directory = epath.Path(directory)
    there = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    return [name for name in names if name not in there]


def write_errors(path: str | os.PathLike[str], errors: Iterable[Mapping[str, Any]]) -> None:
    """Writes the errors of a job as JSON lines; without errors there is no file."""
    lines = [json.dumps(error, ensure_ascii=False) + "\n" for error in errors]
    if lines:
        write_whole(path, "".join(lines))
    else:
        epath.Path(path).unlink(missing_ok=True)


def read_errors(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads what `write_errors` has written."""
    try:
        return [json.loads(line) for line in epath.Path(path).read_bytes().split(b"\n") if line]
    except FileNotFoundError:
        return []


class Rows:
    """Rows of a long job, each with a note or none, saved in parts as they come.

    A context manager: leaving it saves. A part that cannot be read, and those after it, are made
    again.

    Attributes:
      width: E, the size of a row.
      notes: of all rows, in order; None for a row without one.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None,
        width: int,
        *,
        prefix: str = "",
        rows_per_part: int = ROWS_PER_PART,
    ):
        """Reads what an interrupted run has left.

        Args:
          directory: where the parts are, local or `gs://`; None keeps rows in memory only.
          width: E, the size of a row; 0 where notes say it all.
          prefix: tells the parts from others in the directory.
          rows_per_part: how many rows the end of a process can cost.
        """
        self._directory = None if directory is None else epath.Path(directory)
        self._prefix, self._rows_per_part = prefix, rows_per_part
        self.width = width
        self._blocks: list[np.ndarray | epath.Path] = []
        self._new: list[np.ndarray] = []
        self.notes: list[str | None] = []
        if self._directory is not None and self._directory.is_dir():
            self._resume(self._directory)

    def _resume(self, directory: epath.Path) -> None:
        there = {path.name for path in directory.iterdir()}
        while (name := self._name(len(self.notes))) in there:
            try:
                notes = json.loads(_read(directory / name, "notes").tobytes())
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise  # of the system, not of zlib: the part may well be whole
                return
            self._blocks.append(directory / name)
            self.notes += notes

    def _name(self, start: int) -> str:
        """Name of the part that begins at row `start`."""
        return f"{self._prefix}{start:012d}.npz"

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.notes)

    def add(self, row: Float[np.ndarray, " E"] | None, note: str | None = None) -> None:
        """Takes the next row, which is NaN if None, and perhaps a note on it."""
        self._new.append(np.full(self.width, np.nan, np.float32) if row is None else row)
        self.notes.append(note)
        if len(self._new) == self._rows_per_part:
            self.save()

    def save(self) -> None:
        """Writes the rows in memory as one part."""
        if not self._new:
            return
        start, block = len(self) - len(self._new), np.stack(self._new)
        if self._directory is None:
            self._blocks.append(block)
        else:
            path = self._directory / self._name(start)
            notes = np.frombuffer(json.dumps(self.notes[start:]).encode(), np.uint8)
            with open_output(path) as file:
                np.savez(file, rows=block, notes=notes)
            self._blocks.append(path)
        self._new = []

    def blocks(self) -> Iterator[Float[np.ndarray, "k E"]]:
        """Saved rows in order, a part at a time in memory."""
        for block in self._blocks:
            yield block if isinstance(block, np.ndarray) else _read(block, "rows")

    def rows(self) -> Float[np.ndarray, "n E"]:
        """All saved rows."""
        return np.concatenate([np.zeros((0, self.width), np.float32), *self.blocks()])

    def texts(self) -> list[str]:
        """The notes there are."""
        return [note for note in self.notes if note is not None]

    def remove(self) -> None:
        """Removes the directory, with the parts and the settings in it."""
        if self._directory is not None:
            self._directory.rmtree(missing_ok=True)

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *_: object) -> None:
        if len(self):
            self.save()
        else:  # failed before it began: bind nobody to its settings
            self.remove()


def _read(path: epath.Path, name: str) -> np.ndarray:
    """One array of a part."""
    with path.open("rb") as file, np.load(file) as part:
        return part[name]
