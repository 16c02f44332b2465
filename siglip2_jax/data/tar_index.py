"""Positions of the samples of a tar: read once from its headers, kept in a file beside it."""

from __future__ import annotations

import json
import logging
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Shaped

from siglip2_jax.data.files import IMAGE_SUFFIXES
from siglip2_jax.outputs import write_whole

_FORMAT = "siglip2_jax tar index, version 1"
_IMAGE, _TEXT, _JSON = range(3)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TarIndex:
    """The samples of one tar that have an image.

    Attributes:
      path: the tar.
      keys: names of the samples, in UTF-8.
      spans: offset and size in bytes of each sample's image, text and JSON; -1 where it has none.
      problem: where and why the tar cannot be read to its end; None for a whole one.
    """

    path: str
    keys: Shaped[np.ndarray, " n"]
    spans: Int64[np.ndarray, "n 6"]
    problem: str | None = None

    def __len__(self) -> int:
        return len(self.keys)


def index_file(path: str) -> Path:
    """Path of the index of a tar."""
    return Path(path + ".idx.json")


def index_tar(path: str) -> TarIndex:
    """The index of a tar: read from beside it, or made and written there.

    A tar that is cut short gives the samples before the cut. This, and a directory that the index
    cannot be written to, is logged as a warning.

    Raises:
      ValueError: the file is no tar, or a compressed one.
      OSError: it cannot be read.
    """
    stat = os.stat(path)
    identity = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    index = _load(path, identity)
    if index is None:
        index = _walk(path, stat.st_size)
        _store(index, identity)
    if index.problem:
        _log.warning(
            "%s is damaged %s; its first %d samples are used", path, index.problem, len(index)
        )
    return index


def _load(path: str, identity: dict[str, int]) -> TarIndex | None:
    """The index beside a tar; None where there is none, or one of another file or format."""
    try:
        content = json.loads(index_file(path).read_bytes())
        if content["format"] != _FORMAT or content["tar"] != identity:
            return None
        return _make(path, content["samples"], content["problem"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _store(index: TarIndex, identity: dict[str, int]) -> None:
    samples = {
        key.decode(): spans.tolist() for key, spans in zip(index.keys, index.spans, strict=True)
    }
    content = {
        "format": _FORMAT,
        "tar": identity,
        "problem": index.problem,
        "columns": "key: image offset, size, text offset, size, json offset, size; -1: none",
        "samples": samples,
    }
    try:
        write_whole(index_file(index.path), json.dumps(content))
    except OSError as error:
        _log.warning(
            "the index of %s cannot be kept beside it and is made again each time (%s)",
            index.path,
            error,
        )


def _make(path: str, samples: dict[str, list[int]], problem: str | None) -> TarIndex:
    keys = np.array([key.encode() for key in samples], np.bytes_)
    spans = np.array(list(samples.values()), np.int64).reshape(len(samples), 6)
    return TarIndex(path, keys, spans, problem)


def _walk(path: str, size: int) -> TarIndex:
    """Reads the headers of all members."""
    samples: dict[str, list[int]] = {}
    last, problem = "", None
    try:
        with tarfile.open(path, "r:") as tar:
            for member in _members(tar):
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError("unexpected end of data")
                key, _, suffix = _split(member.name)
                kind = _kind(suffix)
                if kind is not None and member.isreg():
                    spans = samples.setdefault(key, [-1] * 6)
                    spans[2 * kind : 2 * kind + 2] = member.offset_data, member.size
                    last = key
            # tarfile takes a damaged or missing header after the first for the end.
            if not _ends_at(path, tar.offset):
                raise tarfile.ReadError(f"no header and no end mark at byte {tar.offset}")
    except tarfile.TarError as error:
        if not samples:
            raise ValueError(
                f"{path} is not an uncompressed tar ({error}); unpack a compressed one first"
            ) from error
        problem = f"({error})"
        if max(samples[last][2 * _TEXT], samples[last][2 * _JSON]) < 0:
            del samples[last]  # its caption is beyond the cut
    whole = {key: spans for key, spans in samples.items() if spans[2 * _IMAGE] >= 0}
    return _make(path, whole, problem)


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        yield member
        # tarfile keeps all of them otherwise; its type does not show them
        tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]


def _split(name: str) -> tuple[str, str, str]:
    folder, slash, base = name.rpartition("/")
    key, dot, suffix = base.partition(".")
    return folder + slash + key, dot, suffix


def _kind(suffix: str) -> int | None:
    suffix = "." + suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return _IMAGE
    return {".txt": _TEXT, ".json": _JSON}.get(suffix)


def _ends_at(path: str, offset: int) -> bool:
    """True where a tar's end mark, a block of zeros, is at an offset."""
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(tarfile.BLOCKSIZE) == tarfile.NUL * tarfile.BLOCKSIZE
