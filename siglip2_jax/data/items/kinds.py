"""Kinds of sources that items come from: how each is cut into shards, and which columns it has."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import PurePath
from typing import Any

from siglip2_jax.data.example import CAPTION_FIELDS, RESERVED
from siglip2_jax.data.files import find_shards
from siglip2_jax.data.items.item import Columns
from siglip2_jax.data.items.shards import ROWS, FileGroup, Group, Groups, RowGroup
from siglip2_jax.data.parquet import SUFFIX as PARQUET
from siglip2_jax.data.parquet import ParquetFile
from siglip2_jax.data.parquet_footer import check_pyarrow, index_rows
from siglip2_jax.data.records import SUFFIX as RECORDS
from siglip2_jax.data.records import Records, check_packs, find_packs
from siglip2_jax.data.sources import Folder
from siglip2_jax.data.stores.manifest import Manifest
from siglip2_jax.data.stores.manifest_files import load_manifest
from siglip2_jax.data.stores.store import Store, is_remote
from siglip2_jax.data.table import SUFFIXES as TABLES
from siglip2_jax.data.table import Table, table_columns
from siglip2_jax.data.tars import SUFFIX as TARS
from siglip2_jax.data.tars import Tars
from siglip2_jax.data.tfds import Tfds
from siglip2_jax.fingerprint import fingerprint, fingerprint_arrays
from siglip2_jax.strings import Strings

Make = Callable[[str, Columns], Group]
USUAL_CAPTIONS = ("caption", "captions", "text")
USUAL_IMAGES = ("image", "img", "jpg", "png", "webp")
USUAL_PATHS = ("image", "file_name", "filename", "file", "path", "image_path", "filepath", "url")
_TFDS = re.compile(r"(.+?(?::\d[\d.*]*)?):([^:].*)")


def tar_group(spec: str, columns: Columns) -> Group:
    """Tars, a shard each; with a manifest, which is read once, ranges of whole blocks."""
    _check_fixed(spec, columns)
    store = Store()
    manifest = load_manifest(spec, TARS, store)
    if manifest is None and not is_remote(spec):
        return FileGroup(Strings.join(find_shards(spec, TARS)), Tars)
    source = Tars(spec)
    if manifest is None:
        source.open()  # says that there must be one
    assert manifest is not None
    name = os.path.basename(manifest.folder)
    rows = max(1, ROWS // manifest.block_size) * manifest.block_size
    return RowGroup(name, source, len(manifest), rows, version=_version(manifest))


def record_group(spec: str, columns: Columns) -> FileGroup:
    """ArrayRecord files, a shard each."""
    _check_fixed(spec, columns)
    paths = find_shards(spec, RECORDS)
    check_packs(spec, find_packs(paths))
    return FileGroup(Strings.join(paths), Records)


def parquet_group(spec: str, columns: Columns) -> FileGroup:
    """Parquet files, a shard each, all with the columns of the first."""
    check_pyarrow()
    store = Store()
    if is_remote(spec):
        files = store.list(spec, PARQUET)
        versions = Strings.join(f"{file.size} {file.version}" for file in files)
        paths = Strings.join(file.path for file in files)
    else:
        paths, versions = Strings.join(find_shards(spec, PARQUET)), None
    path = paths[0]
    _, footer = index_rows(store.stat(path), store)
    names = footer.schema.to_arrow_schema().names
    image = choose(columns.image, USUAL_IMAGES, names, path) or "image"
    caption = choose(columns.caption, USUAL_CAPTIONS, names, path)
    kept = kept_columns(columns, names, path)
    source = partial(ParquetFile, image=image, caption=caption, fields=kept)
    return FileGroup(paths, source, versions)


def table_group(spec: str, columns: Columns) -> Group:
    """Rows of tables of paths, so many in each shard; of several tables, one after the other."""
    suffix = PurePath(spec).suffix.lower()
    groups = [_table(path, columns) for path in find_shards(spec, suffix)]
    return groups[0] if len(groups) == 1 else Groups(groups)


def _table(path: str, columns: Columns) -> RowGroup:
    names = table_columns(path)
    image = choose(columns.image, USUAL_PATHS, names, path) or USUAL_PATHS[0]
    caption = choose(columns.caption, USUAL_CAPTIONS, names, path)
    kept_columns(columns, names, path)
    source = Table(path, image, caption)
    return RowGroup(os.path.basename(path), source, len(source.open()), ROWS, (path,))


def tfds_group(spec: str, columns: Columns) -> RowGroup:
    """Examples of a TFDS split, so many in each shard.

    Args:
      spec: NAME:SPLIT, where NAME may be the directory of a version.
      columns: names of columns.
    """
    match = _TFDS.fullmatch(spec)
    if match is None:
        raise ValueError(f"tfds:{spec} names no split; expected tfds:NAME:SPLIT")
    name, split = match.groups()
    directory = name if os.path.isdir(name) else None
    image = columns.image or "image"
    opened: Any = Tfds(name, split, directory, image, None).open()
    names, place = list(opened.features), f"tfds:{spec}"
    caption = choose(columns.caption, USUAL_CAPTIONS, names, place)
    kept_columns(columns, names, place)
    source = Tfds(name, split, directory, image, caption)
    version = fingerprint([opened.files.paths.data.tolist(), opened.files.counts.tolist()])
    name = f"{os.path.basename(name)}-{split}"
    return RowGroup(name, source, len(opened), ROWS, version=version)


def folder_group(spec: str, columns: Columns) -> RowGroup:
    """Rows of a directory of images with captions."""
    _check_fixed(spec, columns)
    source = Folder(spec)
    return RowGroup(
        os.path.basename(os.path.abspath(spec)),
        source,
        len(source.open()),
        ROWS,
        (os.path.join(spec, source.captions),),
    )


def _version(manifest: Manifest) -> str:
    """Digest of a manifest's files."""
    columns = {
        "names": manifest.names.data,
        "versions": manifest.versions.data,
        "sizes": manifest.sizes,
        "counts": manifest.counts,
    }
    return fingerprint_arrays(columns)


def choose(given: str | None, usual: Iterable[str], names: Iterable[str], place: str) -> str | None:
    """The name of a column: the one given, or the first usual one there is.

    Raises:
      ValueError: the one given is not there.
    """
    if given is None:
        return next((name for name in usual if name in names), None)
    if given not in names:
        raise ValueError(f"{place} has no column {given!r}; its columns are {', '.join(names)}")
    return given


def kept_columns(columns: Columns, names: Iterable[str], place: str) -> tuple[str, ...]:
    """The columns to read beside image and caption: those to keep, and that of the id.

    Raises:
      ValueError: one is not there, or has a name that means something else in an example.
    """
    kept = list(columns.fields)
    if columns.id is not None and columns.id not in kept:
        kept.append(columns.id)
    for name in kept:
        choose(name, (), names, place)
        if name in RESERVED or name in CAPTION_FIELDS:
            raise ValueError(
                f"{place}: a column {name!r} cannot be kept, as it is the name of a part of every "
                "example; rename the column"
            )
    return tuple(kept)


def _check_fixed(spec: str, columns: Columns) -> None:
    for option, name in (("image", columns.image), ("caption", columns.caption)):
        if name is not None:
            raise ValueError(
                f"{spec} has no columns, so that there is no {option} column {name!r}; leave it out"
            )


FILES: dict[str, Make] = {
    TARS: tar_group,
    PARQUET: parquet_group,
    RECORDS: record_group,
    **dict.fromkeys(TABLES, table_group),
}
