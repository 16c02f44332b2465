"""Kinds of sources that items come from: how each is cut into shards, and which columns it has."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial

from siglip2_jax.data.example import CAPTION_FIELDS, RESERVED
from siglip2_jax.data.files import find_shards
from siglip2_jax.data.items.item import Columns
from siglip2_jax.data.items.shards import FileGroup, Group, RowGroup
from siglip2_jax.data.parquet import Parquet
from siglip2_jax.data.parquet_footer import check_pyarrow, index_rows
from siglip2_jax.data.records import Records
from siglip2_jax.data.sources import Folder, Source
from siglip2_jax.data.stores.store import Store, is_remote
from siglip2_jax.data.tars import Tars
from siglip2_jax.strings import Strings

Make = Callable[[str, Columns], Group]
_USUAL_CAPTIONS = ("caption", "captions", "text")
_USUAL_IMAGES = ("image", "img", "jpg", "png", "webp")


def tar_group(spec: str, columns: Columns) -> FileGroup:
    """Tars, a shard each."""
    _check_fixed(spec, columns)
    return _files(spec, ".tar", Tars)


def record_group(spec: str, columns: Columns) -> FileGroup:
    """ArrayRecord files, a shard each."""
    _check_fixed(spec, columns)
    return _files(spec, ".arrayrecord", Records)


def parquet_group(spec: str, columns: Columns) -> FileGroup:
    """Parquet files, a shard each, all with the columns of the first."""
    check_pyarrow()
    group, store = _files(spec, ".parquet", Parquet), Store()
    path = group.paths[0]
    _, footer = index_rows(store.stat(path), store)
    names = footer.schema.to_arrow_schema().names
    image = choose(columns.image, _USUAL_IMAGES, names, path) or "image"
    caption = choose(columns.caption, _USUAL_CAPTIONS, names, path)
    kept = kept_columns(columns, names, path)
    source = partial(Parquet, image=image, caption=caption, fields=kept)
    return FileGroup(group.paths, source, group.versions)


def folder_group(spec: str, columns: Columns) -> RowGroup:
    """Rows of a directory of images with captions."""
    _check_fixed(spec, columns)
    source = Folder(spec)
    return RowGroup(
        os.path.basename(os.path.abspath(spec)),
        source,
        len(source.open()),
        (os.path.join(spec, source.captions),),
    )


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


def _files(spec: str, suffix: str, source: Callable[[str], Source]) -> FileGroup:
    if is_remote(spec):
        files = Store().list(spec, suffix)
        versions = Strings.join(f"{file.size} {file.version}" for file in files)
        return FileGroup(Strings.join(file.path for file in files), source, versions)
    return FileGroup(Strings.join(find_shards(spec, suffix)), source)


FILES: dict[str, Make] = {
    ".tar": tar_group,
    ".parquet": parquet_group,
    ".arrayrecord": record_group,
}
