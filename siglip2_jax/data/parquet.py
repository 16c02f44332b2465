"""Parquet files of images, as Hugging Face's `datasets` writes them; extra `remote`.

A row group is a block: reading one row costs as much as reading its group.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from string import Formatter
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from siglip2_jax.data.example import (
    ExampleError,
    SourceError,
    as_captions,
    fill,
    make_example,
    naming,
)
from siglip2_jax.data.held import Held
from siglip2_jax.data.image_files import read_image
from siglip2_jax.data.parquet_footer import (
    check_pyarrow,
    column_ranges,
    index_rows,
    label_names,
    parse_footer,
    usual_group,
)
from siglip2_jax.data.prefetch import thread_map
from siglip2_jax.data.sources import Examples
from siglip2_jax.data.stores.block_reader import BlockReader, Make
from siglip2_jax.data.stores.client import CHANGED
from siglip2_jax.data.stores.file import StoreFile
from siglip2_jax.data.stores.manifest import Manifest, Piece, join
from siglip2_jax.data.stores.manifest_files import folder_of, load_manifest
from siglip2_jax.data.stores.store import Store, is_remote
from siglip2_jax.errors import reason_of

if TYPE_CHECKING:
    from pyarrow import Table
    from pyarrow.parquet import FileMetaData

SUFFIX = ".parquet"
_AHEAD = 32
_FOOTERS = 256  # held in memory


@dataclass(frozen=True)
class Parquet:
    """Parquet files, local or in a store; those in a store need a manifest (`siglip2 data index`).

    Attributes:
      pattern: a file, a directory of them, or a glob; local, `gs://` or `s3://`.
      image: the column with the image's bytes: binary, or a struct with `bytes`, or with the `path`
        of a local file in the folder of the Parquet file or below.
      caption: the column with captions: a text or a list of texts; None for no captions.
      template: makes the caption of other columns instead: "a photo of a {label}". Class labels of
        `datasets` are filled in by name.
      fields: further columns that examples have; each costs bytes.
    """

    pattern: str
    image: str = "image"
    caption: str | None = "caption"
    template: str | None = None
    fields: tuple[str, ...] = ()

    def open(self) -> Examples:
        """Reads the manifest, or the footers of local files.

        Raises:
          ValueError: there are no files, one is no Parquet, a column is not there, or files in a
            store have no whole manifest.
          SourceError: the store cannot be read.
        """
        check_pyarrow()
        store = Store()
        manifest = load_manifest(self.pattern, SUFFIX, store)
        if manifest is None and is_remote(self.pattern):
            raise ValueError(
                f"{self.pattern} has no manifest, without which files in a store are not read; "
                f"make it with `siglip2 data index '{self.pattern}'`"
            )
        return _ParquetBlocks(manifest or _index(self.pattern, store), store, self)

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        texts = [] if self.caption is None else [self.caption]
        if self.template is not None:
            names = (name for _, name, _, _ in Formatter().parse(self.template))
            texts = [name.partition(".")[0].partition("[")[0] for name in names if name]
        return list(dict.fromkeys([self.image, *texts, *self.fields]))


@dataclass(frozen=True)
class ParquetFile(Parquet):
    """One Parquet file, local or in a store, by its footer; there need be no manifest."""

    def open(self) -> Examples:
        """Reads the footer; raises what `Parquet` does."""
        check_pyarrow()
        store = Store()
        return _ParquetBlocks(_index(self.pattern, store), store, self)


def _index(pattern: str, store: Store) -> Manifest:
    files = store.list(pattern, SUFFIX)
    size = usual_group(index_rows(files[0], store)[1], files[0].path)
    entries = [entry for entry, _ in thread_map(partial(index_rows, store=store), files, _AHEAD)]
    if not sum(entry.count for entry in entries):
        raise ValueError(f"{pattern}: there are no rows in {len(files)} files")
    return join(folder_of(pattern, SUFFIX), size, entries)


class _Row(NamedTuple):
    """A row of a table in memory."""

    table: Table
    number: int
    name: str

    def __getitem__(self, column: str) -> Any:
        return self.table[column][self.number].as_py()


class _ParquetBlocks(BlockReader):
    remote = True  # in effect: a row alone cannot be read

    def __init__(self, manifest: Manifest, store: Store, source: Parquet) -> None:
        super().__init__(manifest, store)
        self._source = source
        self._footers = Held[Any](_FOOTERS)
        _check_columns(self._footer(0), manifest.file(0).path, source.columns)
        self._labels = label_names(self._footer(0))

    def _footer(self, number: int) -> FileMetaData:
        return self._footers.get(number, partial(self._read_footer, number))

    def _read_footer(self, number: int) -> FileMetaData:
        file = self.manifest.file(number)
        data = self.store.read(file, int(self.manifest.starts[number]))
        try:
            return parse_footer(data, file.path)
        except ValueError as error:
            raise SourceError(f"{file.path} {CHANGED}") from error

    def _read(self, piece: Piece) -> list[Make]:
        footer, makers, start = self._footer(piece.file), [], 0
        path = self.manifest.file(piece.file).path
        for group in range(footer.num_row_groups):
            end = start + footer.row_group(group).num_rows
            rows = range(max(start, piece.first), min(end, piece.last))
            if rows:
                names = [f"{path}:{row}" for row in rows]
                try:
                    table = self._table(piece.file, footer, group)
                    rows = [
                        _Row(table, row - start, name)
                        for row, name in zip(rows, names, strict=True)
                    ]
                    makers += [partial(self._make, row) for row in rows]
                except _Damaged as error:
                    makers += [partial(_fail, f"{name}: {error}", name) for name in names]
            start = end
        return makers

    def _table(self, number: int, footer: FileMetaData, group: int) -> Table:
        """The columns of a row group that are read."""
        import pyarrow
        from pyarrow.parquet import ParquetFile

        file, columns = self.manifest.file(number), self._source.columns
        data = self.store.read_ranges(file, sorted(column_ranges(footer, group, columns)))
        try:
            stream = StoreFile(file, self.store, data)
            reader = ParquetFile(stream, metadata=footer, pre_buffer=False)
            return reader.read_row_group(group, columns=columns, use_threads=False)
        except SourceError:
            raise
        except (pyarrow.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the system; damage has no number
            reason = reason_of(error)
            raise _Damaged(f"its row group {group} is damaged ({reason})") from error

    def _make(self, row: _Row) -> dict[str, Any]:
        source, name = self._source, row.name
        with naming(name):
            image = row[source.image]
            if isinstance(image, dict):
                image = image.get("bytes") or _beside(name, image.get("path"))
            if not image:
                raise ExampleError(f"{name}: its image has no bytes", name)
            if source.template is not None:
                values = {column: row[column] for column in source.columns[1:]}
                for column, names in self._labels.items():
                    if isinstance(label := values.get(column), int) and 0 <= label < len(names):
                        values[column] = names[label]
                captions: tuple[str, ...] = (fill(source.template, values, name),)
            elif source.caption is None:
                captions = ()
            else:
                captions = as_captions(row[source.caption], name)
            return make_example(image, captions, name, {x: row[x] for x in source.fields})


def _beside(name: str, path: Any) -> bytes | None:
    """An image that a row names by its path, in the folder of the local Parquet file or below."""
    folder = os.path.dirname(name)
    if not isinstance(path, str) or not path or is_remote(name):
        return None
    file, root = (os.path.realpath(x) for x in (os.path.join(folder, path), folder))
    if os.path.commonpath([file, root]) != root:
        raise ExampleError(
            f"{name}: its image is in {path}, outside the folder of the Parquet file, which is not "
            "read; write the bytes into the Parquet file",
            name,
        )
    return read_image(file)


class _Damaged(Exception):
    """Error for a row group that cannot be decoded."""


def _fail(sentence: str, name: str) -> NoReturn:
    raise ExampleError(sentence, name)


def _check_columns(footer: FileMetaData, path: str, columns: list[str]) -> None:
    names = footer.schema.to_arrow_schema().names
    for column in columns:
        if column not in names:
            raise ValueError(f"{path} has no column {column!r}; its columns are {', '.join(names)}")
