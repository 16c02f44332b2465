"""Files of a manifest: parts, which several machines can make, in a folder beside the data."""

from __future__ import annotations

import io
import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from siglip2_jax.data.stores.manifest import Manifest, Spans, concatenate
from siglip2_jax.data.stores.store import File, Store, fixed_folder, name_in
from siglip2_jax.strings import Strings

FORMAT = "siglip2_jax manifest, version 1"
FOLDER = "manifest"
_PART = re.compile(r"/\d{5}-of-\d{5}\.npz$")
_THREADS = 32


class Shard(NamedTuple):
    """One of several equal shares of the files of a data set, `number` of `count`."""

    number: int = 0
    count: int = 1

    def share(self, total: int) -> range:
        """The numbers of the files in it, of a total."""
        number, count = self
        return range(number * total // count, (number + 1) * total // count)


ALL = Shard()


class About(NamedTuple):
    """Description of a manifest, the same in all its parts.

    Attributes:
      suffix: of the files.
      pattern: what was indexed, relative to the folder.
      files: number of files of all parts.
      listing: digest of their names.
      block_size: examples of a whole block.
    """

    suffix: str
    pattern: str
    files: int
    listing: str
    block_size: int


def part_path(folder: str, shard: Shard) -> str:
    """Path of the part of the manifest of a folder that describes a share of its files."""
    return f"{folder}/{FOLDER}/{shard.number:05d}-of-{shard.count:05d}.npz"


def parts_of(folder: str, store: Store) -> list[File]:
    """The parts there are of the manifest of a folder, in order.

    Raises:
      ValueError: they are of two manifests.
    """
    there = [file for file in store.files(f"{folder}/{FOLDER}") if _PART.search(file.path)]
    if len(sizes := {file.path[-9:-4] for file in there}) > 1:
        raise ValueError(
            f"{folder}/{FOLDER} has parts of manifests of {' and of '.join(sorted(sizes))} parts; "
            "remove those of all but one"
        )
    return sorted(there, key=lambda file: file.path)


def folder_of(pattern: str, suffix: str) -> str:
    """The folder whose manifest describes the files that a path, directory or glob means."""
    folder = fixed_folder(pattern)
    return folder.rpartition("/")[0] or "." if folder.endswith(suffix) else folder


def inner_pattern(pattern: str, suffix: str) -> str:
    """A pattern relative to its folder, the same for a directory and for all files in it."""
    folder = folder_of(pattern, suffix)
    inner = name_in(folder, pattern.rstrip("/"))
    return f"*{suffix}" if inner == folder else inner


def load_manifest(pattern: str, suffix: str, store: Store) -> Manifest | None:
    """The manifest of the files that a path, directory or glob means; None where there is none.

    Raises:
      ValueError: parts are missing or damaged, or it is of other files.
      SourceError: it cannot be read.
    """
    folder = folder_of(pattern, suffix)
    if not (files := parts_of(folder, store)):
        return None
    count = int(files[0].path[-9:-4])
    if missing := {part_path(folder, Shard(i, count)) for i in range(count)} - {
        x.path for x in files
    }:
        first = min(missing)
        number = int(first[-18:-13])
        raise ValueError(
            f"the manifest of {folder} lacks {len(missing)} of {count} parts, the first {first}; "
            f"finish `siglip2 data index` (--shard {number}/{count}) or `siglip2 data pack`"
        )
    with ThreadPoolExecutor(_THREADS) as pool:
        loaded = pool.map(lambda file: decode_part(store.read(file), folder, file.path), files)
        parts, abouts = zip(*loaded, strict=True)
    about, manifest = abouts[0], concatenate(parts)
    if set(abouts) != {about} or about.files != len(manifest.counts):
        raise ValueError(
            f"the parts of the manifest of {folder} are of different files; remove "
            f"{folder}/{FOLDER} and run `siglip2 data index` again"
        )
    inner = inner_pattern(pattern, suffix)
    if about.suffix != suffix or about.pattern not in (inner, f"*{suffix}"):
        raise ValueError(
            f"the manifest of {folder} is of {about.pattern}, not of {inner}; use that pattern, or "
            "a folder for each data set"
        )
    if not len(manifest):
        raise ValueError(f"{pattern}: no example to use in {about.files} files")
    return manifest if about.pattern == inner else manifest.select(pattern)


def encode_part(manifest: Manifest, about: About) -> bytes:
    """A part of a manifest as the bytes of its file."""
    numbers = np.array(sorted(manifest.odd), np.int64)
    odd = [manifest.odd[i] for i in numbers.tolist()]
    keys = Strings.join(key for spans in odd for key in spans.keys)
    text = {"format": FORMAT, **about._asdict()}
    file = io.BytesIO()
    np.savez(
        file,
        about=np.frombuffer(json.dumps(text).encode(), np.uint8),
        names=manifest.names.data,
        name_ends=manifest.names.offsets,
        versions=manifest.versions.data,
        version_ends=manifest.versions.offsets,
        sizes=manifest.sizes,
        counts=manifest.counts,
        starts=manifest.starts,
        left_out=manifest.left_out,
        lengths=manifest.lengths,
        odd=numbers,
        odd_counts=np.array([len(spans.keys) for spans in odd], np.int64),
        odd_keys=keys.data,
        odd_key_ends=keys.offsets,
        odd_spans=np.concatenate([np.zeros((0, 6), np.int64), *(x.spans for x in odd)]),
    )
    return file.getvalue()


def decode_part(data: bytes, folder: str, path: str) -> tuple[Manifest, About]:
    """A part of a manifest, and what is said about it.

    Raises:
      ValueError: it is damaged, or of another version.
    """
    try:
        with np.load(io.BytesIO(data)) as file:
            part = {name: file[name] for name in file.files}
        about = json.loads(part["about"].tobytes())
        if (format := about.pop("format")) != FORMAT:
            raise ValueError(f"its format is {format!r:.80}, expected {FORMAT}")
        keys = list(Strings(part["odd_keys"], part["odd_key_ends"]))
        ends = np.cumsum(part["odd_counts"]).tolist()
        odd, start = {}, 0
        for number, end in zip(part["odd"].tolist(), ends, strict=True):
            odd[number] = Spans(Strings.join(keys[start:end]), part["odd_spans"][start:end])
            start = end
        manifest = Manifest(
            folder,
            about["block_size"],
            Strings(part["names"], part["name_ends"]),
            Strings(part["versions"], part["version_ends"]),
            part["sizes"],
            part["counts"],
            part["starts"],
            part["lengths"],
            odd,
            part["left_out"],
        )
    except Exception as error:  # zip files and arrays are damaged in many ways
        raise ValueError(
            f"{path} is damaged ({error}); remove it and run the command that wrote it again"
        ) from error
    return manifest, About(**about)
