"""Positions of the samples of a tar: read once from its headers, kept in a file beside it."""

from __future__ import annotations

import io
import itertools
import json
import logging
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from siglip2_jax.data.files import IMAGE_SUFFIXES
from siglip2_jax.data.tar.members import Member, read_members
from siglip2_jax.outputs import write_whole
from siglip2_jax.strings import Strings

_log = logging.getLogger(__name__)

# An index depends on this, and on nothing but its tar else.
_FORMAT = {"format": "siglip2_jax tar index, version 2", "images": sorted(IMAGE_SUFFIXES)}
_IMAGE, _TEXT, _JSON, _DOTTED = range(4)
_LEFT_OUT = {
    "no_image": "samples without an image beside their caption",
    "ambiguous": "samples with two images, texts or JSON files",
    "dotted": "images with a dot in their name before the suffix",
    "unreadable": "samples with a file that is sparse, cut, or a link to nothing in the tar",
}


class Remark(NamedTuple):
    """Remark on some members of a tar: how many there are, and the name of the first."""

    count: int
    first: str


@dataclass(frozen=True, eq=False)
class TarIndex:
    """The samples of one tar that can be used.

    Attributes:
      path: the tar.
      keys: names of the samples; `#2` and so on is added to a key that came before.
      spans: offset and size in bytes of each sample's image, text and JSON; -1 where it has none.
      remarks: what is left out, as `no_image`, `ambiguous`, `dotted` and `unreadable`; samples with
        the key of an earlier one, as `repeated`; and members that belong to no sample, as `other`.
      damage: where and why the tar cannot be read to its end; None for a whole one.
    """

    path: str
    keys: Strings
    spans: Int64[np.ndarray, "n 6"]
    remarks: dict[str, Remark]
    damage: str | None = None

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def left_out(self) -> int:
        """Number of samples that are left out."""
        return sum(self.remarks[reason].count for reason in _LEFT_OUT if reason in self.remarks)

    @property
    def warning(self) -> str | None:
        """Sentence on all that is lost or odd in the tar; None where nothing is."""
        parts = [f"is damaged {self.damage}, and what follows is lost"] if self.damage else []
        words = {reason: f"leaves out {text}" for reason, text in _LEFT_OUT.items()}
        words["repeated"] = "keeps samples apart whose keys came before"
        for reason, text in words.items():
            if remark := self.remarks.get(reason):
                parts.append(f"{text} ({remark.count}, the first: {remark.first:.100})")
        return f"{self.path} {'; '.join(parts)}" if parts else None


def index_file(path: str) -> Path:
    """Path of the index of a tar."""
    return Path(path + ".idx.npz")


def index_tar(path: str) -> TarIndex:
    """The index of a tar: read from beside it, or made and written there.

    What is lost or odd in the tar is logged as one warning, whether it is indexed now or was
    before; a directory that the index cannot be written to as another.

    Raises:
      ValueError: the file is no tar, or a compressed one.
      OSError: it cannot be read.
    """
    stat = os.stat(path)
    identity = {**_FORMAT, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    index = _load(path, identity)
    if index is None:
        index, _ = make_index(path, *read_members(path))
        _store(index, identity)
    if index.warning:
        _log.warning("%s", index.warning)
    return index


def _load(path: str, identity: dict[str, Any]) -> TarIndex | None:
    """The index beside a tar; None where there is none, or one of another file or format."""
    try:
        with open(index_file(path), "rb") as stream, np.load(stream) as file:
            about = json.loads(file["about"].tobytes())
            if about["identity"] != identity:
                return None
            keys = Strings(file["keys"], file["offsets"])
            remarks = {reason: Remark(*remark) for reason, remark in about["remarks"].items()}
            return TarIndex(path, keys, file["spans"], remarks, about["damage"])
    except Exception:  # whatever a damaged file leads to: it is made again
        return None


def _store(index: TarIndex, identity: dict[str, Any]) -> None:
    about = {"identity": identity, "damage": index.damage, "remarks": index.remarks}
    file = io.BytesIO()
    np.savez(
        file,
        about=np.frombuffer(json.dumps(about).encode(), np.uint8),
        keys=index.keys.data,
        offsets=index.keys.offsets,
        spans=index.spans,
    )
    try:
        write_whole(index_file(index.path), file.getvalue())
    except OSError as error:
        _log.warning(
            "the index of %s cannot be kept beside it and is made again each time (%s)",
            index.path,
            error,
        )


class _Part(NamedTuple):
    """A member that may be a part of a sample."""

    archive: int
    key: str
    kind: int
    member: Member


def make_index(
    path: str, members: list[Member], damage: str | None
) -> tuple[TarIndex, Int64[np.ndarray, "n 2"]]:
    """Makes a sample of the members that stand together and share a key.

    Returns:
      The samples; and the offset of each one's first header, and of what follows its last file.
    """
    remarks: dict[str, Remark] = {}

    def note(reason: str, name: str, count: int = 1) -> None:
        before = remarks.get(reason, Remark(0, name))
        remarks[reason] = before._replace(count=before.count + count)

    parts = []
    for member in members:
        key, kind = _split(member.name)
        if kind is None:
            note("other", member.name)
        else:
            parts.append(_Part(member.archive, key, kind, member))
    keys, spans, places = [], [], []
    times: Counter[str] = Counter()
    for (_, key), group in itertools.groupby(parts, lambda part: part[:2]):
        files: list[list[Member]] = [[], [], [], []]
        group = list(group)
        for part in group:
            files[part.kind].append(part.member)
        compound = files.pop()
        times[key] += 1
        if compound:
            note("other" if files[_IMAGE] else "dotted", compound[0].name, len(compound))
            if not files[_IMAGE]:
                continue
        if reason := _problem(files):
            note(reason, key)
            continue
        if times[key] > 1:
            key = f"{key}#{times[key]}"
            note("repeated", key)
        keys.append(key)
        pieces = [members[0].span if members else None for members in files]
        spans.append([number for piece in pieces for number in piece or (-1, -1)])
        places.append((group[0].member.start, group[-1].member.stop))
    spans = np.array(spans, np.int64).reshape(-1, 6)
    index = TarIndex(path, Strings.join(keys), spans, remarks, damage)
    return index, np.array(places, np.int64).reshape(-1, 2)


def _problem(files: list[list[Member]]) -> str | None:
    """The reason to leave out a sample, given its images, texts and JSON files."""
    if not files[_IMAGE]:
        return "no_image"
    if max(map(len, files)) > 1:
        return "ambiguous"
    if any(member.span is None for members in files for member in members):
        return "unreadable"
    return None


def _split(name: str) -> tuple[str, int | None]:
    """The key of a member and its role in the sample; None for a member without a role.

    As webdataset has it, a key ends at the first dot of the base name. Hidden files have none.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    suffix = "." + suffix.lower()
    kind = {".txt": _TEXT, ".json": _JSON}.get(suffix)
    if suffix in IMAGE_SUFFIXES:
        kind = _IMAGE
    elif os.path.splitext(suffix)[1] in IMAGE_SUFFIXES:
        kind = _DOTTED
    return folder + slash + stem, kind if stem else None
