"""The file `siglip2 embed` writes, in parts that survive an interruption.

While a run is under way its rows lie in `OUT.partial/`, a part file every few thousand items. A
run with the same items and settings continues after the last part; `finish` joins the parts into
OUT in one step and removes them.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from etils import epath

from siglip2_jax.outputs import behind_links, is_special, open_output, write_whole
from siglip2_jax.preprocess.decode import ImageError

ITEMS_PER_PART = 2048


class EmbeddingWriter:
    """Collects a row or an error per item, in order. A context manager: leaving it saves.

    Attributes:
      done: how many items an earlier, interrupted run has finished.
      complete: whether OUT is already there, made from the same items and settings.
    """

    def __init__(
        self,
        out: str | os.PathLike[str],
        items: Sequence[str],
        settings: dict[str, Any],
        *,
        overwrite: bool = False,
        items_per_part: int = ITEMS_PER_PART,
    ):
        """Looks for an earlier run.

        Args:
          out: the `.npz` file to write, local or `gs://`.
          items: what is embedded: paths or texts.
          settings: what decides the numbers.
          overwrite: forget an earlier run and replace its file.
          items_per_part: how many items an interruption can cost.

        Raises:
          ValueError: OUT, or the parts of an interrupted run, came from other items or settings.
        """
        out = epath.Path(out)
        if out.suffix != ".npz" or is_special(behind_links(out)):
            raise ValueError(f"the output is {out}; expected a file whose name ends in .npz")
        self.out = out
        self.parts = out.with_name(out.name + ".partial")
        self.errors = out.with_name(out.name + ".errors.jsonl")
        self.items = list(items)
        self.items_per_part = items_per_part
        digest = hashlib.sha256("\0".join(self.items).encode("utf-8", "surrogateescape"))
        self.settings = {**settings, "items": len(items), "items_sha256": digest.hexdigest()}
        self._rows: list[np.ndarray | None] = []
        self._reports: list[str] = []
        if overwrite:
            self.parts.rmtree(missing_ok=True)
        self.complete = out.exists() and not overwrite
        if self.complete:
            self._compare(out, _read_settings(out))
        self.done = len(items) if self.complete else self._resume()

    def _resume(self) -> int:
        """Prepares the parts' directory; how many items its parts hold."""
        record = self.parts / "settings.json"
        if record.exists():
            self._compare(self.parts, json.loads(record.read_text()))
        else:
            write_whole(record, json.dumps(self.settings))
        return sum(len(part["ok"]) for part in self._saved())

    def _compare(self, where: epath.Path, found: dict[str, Any]) -> None:
        """Refuses to continue or replace what other settings made."""
        differing = [key for key in self.settings if self.settings[key] != found.get(key)]
        if differing:
            changes = ", ".join(
                f"{key} {found.get(key)!r} (now {self.settings[key]!r})" for key in differing
            )
            raise ValueError(
                f"{where} was made with {changes}; pass --overwrite to start anew, or another --out"
            )

    def __enter__(self) -> EmbeddingWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._rows:  # interrupted: keep what is done
            self._flush()
        elif not self.done:  # failed before it began: bind nobody to its settings
            self.parts.rmtree(missing_ok=True)

    def add(self, row: np.ndarray | ImageError) -> None:
        """Takes the next item's row, or why it has none."""
        if isinstance(row, ImageError):
            item = self.items[self.done + len(self._rows)]
            self._reports.append(json.dumps({"item": item, "error": str(row)}, ensure_ascii=False))
        self._rows.append(None if isinstance(row, ImageError) else row)
        if len(self._rows) == self.items_per_part:
            self._flush()

    def _flush(self) -> None:
        """Writes the rows in memory as one part."""
        good = [row for row in self._rows if row is not None]
        with open_output(self.parts / f"{self.done:012d}.npz") as file:
            np.savez(
                file,
                ok=np.array([row is not None for row in self._rows]),
                embeddings=np.stack(good) if good else np.zeros((0, 0), np.float32),
                reports=np.array(self._reports, dtype=str),
            )
        self.done += len(self._rows)
        self._rows, self._reports = [], []

    def _saved(self) -> Iterator[Mapping[str, np.ndarray]]:
        """The parts, in order; arrays are read when they are asked for."""
        for path in sorted(x for x in self.parts.iterdir() if x.suffix == ".npz"):
            with path.open("rb") as file, np.load(file) as part:
                yield part

    def finish(self) -> dict[str, Any]:
        """Joins the parts into OUT, lists errors beside it, and removes the parts.

        Returns:
          A summary: output, counts, settings.
        """
        if not self.complete:
            if self._rows:
                self._flush()
            self._join()
            self.complete = True
        embedded, width = self._size()
        return {
            "out": str(self.out),
            "embedded": embedded,
            "width": width,
            "skipped": len(self.items) - embedded,
            "errors": str(self.errors) if self.errors.exists() else None,
            "settings": self.settings,
        }

    def _size(self) -> tuple[int, int]:
        """Rows and columns of OUT."""
        with self.out.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            with archive.open("embeddings.npy") as file:
                np.lib.format.read_magic(file)
                (rows, columns), _, _ = np.lib.format.read_array_header_1_0(file)
                return rows, columns

    def _join(self) -> None:
        """Streams the parts into one file: never more than a part in memory."""
        kept, reports, width = np.zeros(0, bool), [], 0
        for part in self._saved():
            kept = np.concatenate([kept, part["ok"]])
            reports += part["reports"].tolist()
            width = max(width, part["embeddings"].shape[1])
        items = np.array([x for x, ok in zip(self.items, kept, strict=True) if ok], dtype=str)
        self.errors.unlink(missing_ok=True)
        if reports:
            write_whole(self.errors, "".join(report + "\n" for report in reports))
        with open_output(self.out) as stream, zipfile.ZipFile(stream, "w") as archive:
            with archive.open("embeddings.npy", "w", force_zip64=True) as file:
                header = {"descr": "<f4", "fortran_order": False, "shape": (len(items), width)}
                np.lib.format.write_array_header_1_0(file, header)
                for part in self._saved():
                    file.write(part["embeddings"].astype("<f4").tobytes())
            for name, array in {"items": items, "settings": json.dumps(self.settings)}.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)
        self.parts.rmtree()


def _read_settings(out: epath.Path) -> dict[str, Any]:
    """The settings of a finished file.

    Raises:
      ValueError: the file is something else.
    """
    try:
        with out.open("rb") as stream, np.load(stream) as file:
            return json.loads(str(file["settings"]))
    except (KeyError, IndexError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{out} exists and was not written by `siglip2 embed`; pass --overwrite to replace it, "
            "or another --out"
        ) from error
