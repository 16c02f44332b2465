"""Shards of what a user names: files of images, directories, globs, tars, tables and data sets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import PurePath

from siglip2_jax.data.files import IMAGE_SUFFIXES, find_images, is_hidden
from siglip2_jax.data.items.item import USUAL, Columns, Shard
from siglip2_jax.data.items.kinds import FILES, Make, folder_group, tfds_group
from siglip2_jax.data.items.shards import Group, ImageGroup, Shards
from siglip2_jax.data.sources import Folder
from siglip2_jax.strings import Strings

_IN_DIRECTORIES = frozenset({".tar", ".parquet", ".arrayrecord", "images"})
_TFDS = "tfds:"


def find_items(specs: Sequence[str], columns: Columns = USUAL) -> Sequence[Shard]:
    """Finds the shards of what a user names, in the order given.

    - Images: files, directories (searched to any depth) and globs, as `find_images` takes them,
      10,000 in a shard; a directory as `Folder` reads it gives captions, too.
    - `*.tar`, `*.parquet` and `*.arrayrecord`: files, globs, and directories that hold them, each
      file a shard. Tars and Parquet files may be in a store, by a path or glob with the suffix;
      tars with a manifest, and those in a store need one, are cut into ranges of examples.
    - `*.csv`, `*.tsv`, `*.jsonl`: tables of paths of images, 10,000 rows in a shard.
    - `tfds:NAME:SPLIT`, where NAME may be the directory of a version: 10,000 examples in a shard.

    Args:
      specs: what the user typed.
      columns: names of columns.

    Raises:
      ValueError: something matches nothing, or has no column of a name that was given.
      SourceError: it cannot be read.
    """
    if not specs:
        raise ValueError("there is nothing to read; name images, tars, tables or data sets")
    groups: list[Group] = []
    images: list[str] = []

    def add(group: Group | None) -> None:
        if images:
            groups.append(_images(images))
            images.clear()
        if group is not None:
            groups.append(group)

    for spec in specs:
        if spec.startswith(_TFDS):
            add(tfds_group(spec.removeprefix(_TFDS), columns))
        elif (make := _kind(spec)) is not None:
            add(make(spec, columns))
        else:
            images.append(spec)
    add(None)
    return Shards(groups)


def _images(specs: list[str]) -> ImageGroup:
    paths = find_images(specs)
    name = os.path.basename(os.path.abspath(specs[0])) if len(specs) == 1 else "images"
    return ImageGroup(name, Strings.join(paths))


def _kind(spec: str) -> Make | None:
    """The maker of the shards of a spec; None for images."""
    if os.path.isdir(spec):
        return _kind_of_directory(spec)
    return FILES.get(PurePath(spec).suffix.lower())


def _kind_of_directory(path: str) -> Make | None:
    if os.path.isfile(os.path.join(path, Folder.captions)) and os.path.isdir(
        os.path.join(path, Folder.images)
    ):
        return folder_group
    stems: dict[str, set[str]] = {}
    with os.scandir(path) as entries:
        for entry in entries:
            stem, suffix = os.path.splitext(entry.name)
            suffix = suffix.lower()
            if suffix in IMAGE_SUFFIXES:
                suffix, stem = "images", ""
            if not is_hidden(entry.name) and suffix in _IN_DIRECTORIES:
                stems.setdefault(suffix, set()).add(stem)
    if ".tar" in stems and stems.get(".parquet", set()) <= stems[".tar"]:
        stems.pop(".parquet", None)  # what img2dataset writes about each tar
    if len(stems) > 1:
        raise ValueError(
            f"{path} holds {' and '.join(sorted(stems))}; name those that are meant by a glob"
        )
    return FILES.get(next(iter(stems), ""))
