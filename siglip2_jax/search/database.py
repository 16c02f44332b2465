"""Database of embedded images: a LanceDB table, and the settings that its rows were made with.

The settings are in `siglip2.json`. Rows of another model, preprocessing, text normalisation or
token budget cannot be compared with these, so they are refused.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt64

from siglip2_jax import __version__
from siglip2_jax.inference import load
from siglip2_jax.inference.embedder import Embedder
from siglip2_jax.resumable import compare
from siglip2_jax.search.approximate import Partitions
from siglip2_jax.search.place import Place

TABLE, SETTINGS, PARTITIONS = "items", "siglip2.json", "partitions.npz"
EXACT_UP_TO = 2_000_000
"""Rows up to which search is exact unless it is asked not to be."""

_NOT_COMPARED = {"loaded_from", "made_by", "recall_at_10"}
_OF_RUNS = {
    *("format", "version", "jax", "batch_size", "devices"),
    *("embedding", "fields", "shards", "names"),
}
_WAY_OUT = "use the model and options that made it, or make a new database"


class Database:
    """A database that is there.

    Attributes:
      place: where it is.
      table: LanceDB's table of rows, at the version that was newest.
      settings: what its rows were made with, and the model's source.
    """

    def __init__(self, place: Place, table: Any, settings: dict[str, Any]):
        self.place, self.table, self.settings = place, table, settings

    @classmethod
    def open(cls, uri: str | os.PathLike[str]) -> Database:
        """Opens a database for reading, at its newest version.

        Raises:
          ValueError: there is none, or its settings are damaged.
        """
        place = Place(uri)
        settings = read_settings(place)
        if settings is None:
            raise ValueError(
                f"{place.uri} is no database; make one with `siglip2 index {place.uri} MODEL "
                "IMAGES`"
            )
        connection = place.connect()
        try:
            table = connection.open_table(TABLE)
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(
                f"{place.uri} holds no images yet; run `siglip2 index` on it again"
            ) from error
        return cls(place, table, settings)

    @functools.cached_property
    def partitions(self) -> Partitions | None:
        """The approximate index, if there is one of this version."""
        content = self.place.read(PARTITIONS) if self.settings.get("recall_at_10") else None
        partitions = None if content is None else Partitions.decode(content)
        current = partitions is not None and partitions.version == self.table.version
        return partitions if current else None

    def check_model(self, model: Embedder) -> None:
        """Makes sure that a model is the one that made the rows.

        Raises:
          ValueError: it is another one, or set up differently; the sentence names what differs.
        """
        compare(self.place.uri, self.settings, describe(model), _WAY_OUT)

    def load_model(self, source: str | None = None) -> Embedder:
        """Loads a model, set up as the one that made the rows.

        Args:
          source: where from; None is where it was loaded when the database was made.

        Raises:
          ValueError: that is not known, or cannot be loaded.
        """
        origin = self.settings.get("loaded_from") or {}
        if source is None and not origin:
            raise ValueError(
                f"{self.place.uri} does not say where its model is; pass it (--model SOURCE)"
            )
        if source is not None:
            origin = {"source": source}
        try:
            return load(
                origin["source"],
                origin.get("tokenizer"),
                stage=origin.get("stage"),
                dtype=self.settings["dtype"],
                weights=self.settings["weights_dtype"],
                preproc=self.settings["preproc"],
                text_norm=self.settings["text_norm"],
                exif=self.settings["exif"],
            )
        except (OSError, ValueError) as error:
            if source is not None:
                raise
            raise ValueError(
                f"the model of {self.place.uri} cannot be loaded from where it was ({error}); "
                "pass its new place (--model SOURCE)"
            ) from error

    def select(self, where: str) -> UInt64[np.ndarray, " m"]:
        """The table's own numbers of the rows for which a condition holds.

        Raises:
          ValueError: the condition cannot be read.
        """
        query = self.table.search().where(where).select(["id"]).with_row_id(True)
        try:
            return query.to_arrow()["_rowid"].to_numpy().astype(np.uint64)
        except Exception as error:  # LanceDB's errors have no class of their own
            columns = [name for name in self.table.schema.names if name != "embedding"]
            reason = str(error).split("\n")[0]
            raise ValueError(
                f"the condition {where!r} cannot be read ({reason:.200}); write SQL over the "
                f"columns {', '.join(columns)}"
            ) from error

    def take(self, rows: UInt64[np.ndarray, " m"]) -> list[dict[str, Any]]:
        """Everything but the embedding of rows, by the table's own numbers, in their order."""
        if not len(rows):
            return []
        names = [name for name in self.table.schema.names if name not in ("embedding", "content")]
        query = self.table.take_row_ids(rows.tolist()).select(names).with_row_id()
        table = query.to_arrow()
        by_row = {row.pop("_rowid"): row for row in table.to_pylist()}
        return [by_row[row] for row in rows.tolist()]


def describe(model: Embedder) -> dict[str, Any]:
    """Everything about a model that its embeddings depend on, but the version of this package."""
    identity = model.identity()
    del identity["version"]
    return identity


def settings_of(
    model: Embedder, max_num_patches: int, scaled_decode: bool, loaded_from: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings of a database whose rows a model makes.

    Args:
      model: what embeds.
      max_num_patches: the token budget of native-resolution models.
      scaled_decode: whether large JPEGs are decoded at a fraction of their size.
      loaded_from: arguments of `siglip2_jax.load` that give the model.
    """
    return {
        **describe(model),
        "patches": model.preprocess.num_tokens(max_num_patches),
        "scaled_decode": scaled_decode,
        "width": model.config.vision.width,
        "loaded_from": dict(loaded_from),
        "made_by": f"siglip2_jax {__version__}",
    }


def settings_of_shards(
    manifest: Mapping[str, Any], loaded_from: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Settings of a database whose rows a run of `siglip2 embed --out DIR` has made.

    Args:
      manifest: the run's settings.
      loaded_from: as for `settings_of`; None where it is not known.
    """
    rows = {name: x for name, x in manifest.items() if name not in _OF_RUNS}
    origin = None if loaded_from is None else dict(loaded_from)
    return {**rows, "loaded_from": origin, "made_by": f"siglip2_jax {manifest['version']}"}


def claim(place: Place, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a database: written if it is new, compared with its own otherwise.

    Raises:
      ValueError: it was made with others; the sentence names the first that differs.
    """
    before = read_settings(place)
    if before is None:
        write_settings(place, settings)
        return settings
    now = {name: x for name, x in settings.items() if name not in _NOT_COMPARED}
    compare(place.uri, before, now, _WAY_OUT)
    if settings["loaded_from"] and settings["loaded_from"] != before["loaded_from"]:
        before |= {"loaded_from": settings["loaded_from"]}  # the same model, at a new place
        write_settings(place, before)
    return before


def read_settings(place: Place) -> dict[str, Any] | None:
    """Reads the settings of a database; None where there is none."""
    content = place.read(SETTINGS)
    if content is None:
        return None
    try:
        return json.loads(content)
    except ValueError as error:
        raise ValueError(
            f"{place.uri}/{SETTINGS} is damaged ({error}); put it back, or make a new database"
        ) from error


def write_settings(place: Place, settings: Mapping[str, Any]) -> None:
    """Writes the settings of a database, in one step."""
    place.write(SETTINGS, json.dumps(settings, indent=1, ensure_ascii=False).encode())
