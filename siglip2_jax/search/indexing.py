"""Filling of a database: what is new is embedded and added, what is gone is removed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from siglip2_jax.data.items.item import Item, ItemBatch, Shard
from siglip2_jax.inference.embedder import Embedder
from siglip2_jax.inference.shards import EmbeddingShards, Options
from siglip2_jax.inference.shards.batches import embed_batches, open_reader
from siglip2_jax.progress import Update
from siglip2_jax.search.rows import rows_of
from siglip2_jax.search.writer import Writer

_log = logging.getLogger(__name__)


@dataclass
class Summary:
    """Summary of a run.

    Attributes:
      read: items that were looked at.
      added: rows that are new.
      known: items whose content the database had, or had got just before.
      errors: items that cannot be embedded.
      removed: rows whose content is gone.
      renamed: rows whose image has moved.
    """

    read: int = 0
    added: int = 0
    known: int = 0
    errors: int = 0
    removed: int = 0
    renamed: int = 0


class Contents:
    """Contents of a database, and what a run has met of them.

    Attributes:
      known: contents of all rows at the beginning, sorted.
    """

    def __init__(self, table: Any):
        keys = table.search().select(["content", "id"]).to_arrow().sort_by("content")
        self.known = np.array(keys["content"].to_pylist(), "S32")
        self._ids = keys["id"].combine_chunks()
        self._met = np.zeros(len(self.known), bool)
        self._in_place = np.zeros(len(self.known), bool)
        self._elsewhere: dict[int, str] = {}
        self._new: set[bytes] = set()

    def meet(self, content: str, id_: str) -> bool:
        """Notes an item; tells if its content is new."""
        key = content.encode()
        place = int(np.searchsorted(self.known, key))
        if place == len(self.known) or self.known[place] != key:
            new = (short := bytes.fromhex(content)) not in self._new
            self._new.add(short)
            return new
        self._met[place] = True
        if self._ids[place].as_py() == id_:
            self._in_place[place] = True
        elif not self._in_place[place]:
            self._elsewhere.setdefault(place, id_)
        return False

    def gone(self) -> list[str]:
        """Contents that were not met."""
        return [x.decode() for x in self.known[~self._met]]

    def moved(self) -> dict[str, str]:
        """The new id of each content that was met, but not under its id."""
        return {
            self.known[place].decode(): id_
            for place, id_ in self._elsewhere.items()
            if not self._in_place[place]
        }


def index_images(
    writer: Writer,
    model: Embedder,
    shards: Sequence[Shard],
    options: Options,
    *,
    prune: bool = False,
    update: Update | None = None,
    skipped: Callable[[str], None] = _log.warning,
) -> Summary:
    """Embeds the images that a database does not have, and adds them.

    An image is known by its content: of equal ones the first is a row. An image stands at the same
    place of the same batch whatever is known, so that its embedding is the same to the last bit.

    Args:
      writer: of the database.
      model: what embeds.
      shards: what to read, as `find_items` gives it.
      options: of the run; embeddings are float16.
      prune: remove what is not among the images, and correct the ids of those that have moved.
      update: told how many shards are done, and how many there are.
      skipped: told the reason for each image that cannot be embedded.

    Raises:
      ValueError: a column cannot be kept; or nothing is pruned, as a file cannot be read.
      SourceError: the machine, the network or a permission stands against reading.
    """
    contents, summary = Contents(writer.table), Summary()
    unreadable: str | None = None
    with open_reader(model, shards, options, contents.known) as reader:
        for batch, embeddings in embed_batches(model, reader):
            items = list(_checked(batch, embeddings))
            for item in items:
                if item.error is not None:
                    skipped(item.error)
                    if batch.total == 1 and not item.content:
                        unreadable = item.error
            good = [i for i, item in enumerate(items) if item.error is None]
            new = [i for i in good if contents.meet(items[i].content, items[i].id)]
            if new:
                rows = rows_of([items[i] for i in new], embeddings[new], options.fields)
                writer.add(rows)
            summary.read += len(items)
            summary.errors += len(items) - len(good)
            summary.added += len(new)
            summary.known += len(good) - len(new)
            if update is not None:
                done = batch.first + len(items) == batch.total
                note = f"{summary.read} images, {summary.added} new"
                update(batch.shard + done, len(shards), note)
    writer.commit()
    if prune:
        if unreadable is not None:
            raise ValueError(f"nothing is removed, as not all can be read: {unreadable}")
        _prune(writer, contents, summary)
    return summary


def index_shards(
    writer: Writer,
    runs: Sequence[EmbeddingShards],
    *,
    prune: bool = False,
    update: Update | None = None,
) -> Summary:
    """Adds what runs of `siglip2 embed --out DIR` have embedded and a database does not have.

    Args:
      writer: of the database, whose settings are those of the runs.
      runs: merged.
      prune: as for `index_images`.
      update: told how many items are done, and how many there are.

    Raises:
      ValueError: a column has another type in the database.
    """
    import pyarrow as pa

    contents = Contents(writer.table)
    summary = Summary(errors=sum(run.errors for run in runs))
    total = sum(map(len, runs))
    for run in runs:
        for block in run.blocks():
            ids, hashes = (block.items[name].to_pylist() for name in ("id", "content"))
            new = [
                i
                for i, (x, id_) in enumerate(zip(hashes, ids, strict=True))
                if contents.meet(x, id_)
            ]
            if new:
                values = pa.array(block.embeddings[new].astype(np.float16).reshape(-1))
                rows = block.items.take(new).drop_columns("error")
                vectors = pa.FixedSizeListArray.from_arrays(values, run.width)
                writer.add(rows.append_column("embedding", vectors))
            summary.read += len(ids)
            summary.added += len(new)
            summary.known += len(ids) - len(new)
            if update is not None:
                update(summary.read, total, f"{summary.added} new")
    summary.read += summary.errors
    writer.commit()
    if prune:
        _prune(writer, contents, summary)
    return summary


def _prune(writer: Writer, contents: Contents, summary: Summary) -> None:
    gone, moved = contents.gone(), contents.moved()
    writer.remove(gone)
    writer.change_ids(moved)
    summary.removed, summary.renamed = len(gone), len(moved)


def _checked(batch: ItemBatch, embeddings: np.ndarray) -> Iterator[Item]:
    """Items of a batch; one whose embedding is not finite has an error."""
    for item, row in zip(batch.items, embeddings, strict=True):
        if np.isfinite(row).all() or item.error is not None:
            yield item
        else:
            yield item._replace(error=f"{item.id}: its embedding is not finite")
