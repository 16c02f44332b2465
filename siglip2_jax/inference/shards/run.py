"""Embedding of shards by one process: any number of them at the same time, none waits for others.

Process i of n takes the shards whose number modulo n is i. A shard is done once its file is there,
whole and of the same settings; a rerun, on any number of processes, makes those that are not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax

from siglip2_jax.data.items.item import ItemBatch, Shard
from siglip2_jax.data.prefetch import thread_map
from siglip2_jax.inference.embedder import Embedder
from siglip2_jax.inference.shards.batches import batch_rows, embed_batches, open_reader
from siglip2_jax.inference.shards.manifest import (
    FOLDER,
    MERGED,
    Options,
    claim_manifest,
    directory_of,
    file_name,
    read_mark,
    settings_of,
)
from siglip2_jax.inference.shards.schema import check_pyarrow, schema
from siglip2_jax.inference.shards.write import ShardFiles
from siglip2_jax.progress import Update
from siglip2_jax.resumable import missing

_AHEAD = 64


@dataclass(frozen=True)
class Summary:
    """Summary of one process's part of a run.

    Attributes:
      out: the directory.
      shards: shards of this process.
      skipped: those that were there before.
      images: images of the others.
      errors: those of them that have no embedding.
      seconds: of the whole, without loading the model.
      waited: seconds in which no decoded image was there; the devices may have worked meanwhile.
    """

    out: str
    shards: int
    skipped: int
    images: int
    errors: int
    seconds: float
    waited: float

    def to_json(self) -> dict[str, Any]:
        """The fields, and rates made of them."""
        rate, share = self.images / self.seconds, self.waited / self.seconds
        return asdict(self) | {"images_per_second": rate, "data_wait": share}


class ShardRun:
    """A run over shards, as one process takes part in it; others may, at the same time.

    Attributes:
      shards: all shards, of all processes.
      batch_size: images of a program call, on all devices of the model.
      settings: what decides the rows, as the manifest has it.
    """

    def __init__(
        self,
        model: Embedder,
        shards: Sequence[Shard],
        out: str | os.PathLike[str],
        options: Options | None = None,
    ) -> None:
        """Joins the run, or begins it.

        Args:
          model: what embeds, on devices of this process alone.
          shards: all shards, of all processes.
          out: the directory, local or `gs://`.
          options: those of the run.

        Raises:
          ValueError: there are no shards, or the directory was begun with other settings.
        """
        check_pyarrow()
        if not len(shards):
            raise ValueError(f"there is nothing to embed into {out}; give at least one image")
        self.shards, self._model, self._options = shards, model, options or Options()
        self._out = directory_of(out)
        self._files = self._out / FOLDER
        self.batch_size = batch_rows(model, self._options)
        self.settings = settings_of(model, shards, self._options, self.batch_size)
        self._digest = claim_manifest(self._out, self.settings)
        self._files.mkdir(parents=True, exist_ok=True)

    def embed(self, numbers: Iterable[int], update: Update | None = None) -> Summary:
        """Embeds some of the shards, without those that are done.

        Args:
          numbers: which shards.
          update: called with the number of shards that are over, and of those there are to do.

        Raises:
          ValueError: an image cannot be embedded and the run is strict, or a field cannot be kept.
          OSError: an input cannot be read, or a file not be written.
        """
        numbers, clock = list(numbers), _Clock()
        todo = self._undone({number: self.shards[number] for number in numbers})
        images, errors = self._write(todo, clock, update) if todo else (0, 0)
        return Summary(
            out=str(self._out),
            shards=len(numbers),
            skipped=len(numbers) - len(todo),
            images=images,
            errors=errors,
            seconds=clock.seconds,
            waited=clock.waited,
        )

    def _write(
        self, shards: Mapping[int, Shard], clock: _Clock, update: Update | None
    ) -> tuple[int, int]:
        """Embeds shards; gives the number of their images, and of those with an error."""
        (self._out / MERGED).unlink(missing_ok=True)  # it may not stay as it was found to be
        options, width = self._options, self._model.config.vision.width
        columns = schema(width, options.embedding, options.fields)
        files = ShardFiles(self._files, columns, self._digest, shards)
        images = errors = 0
        reader = open_reader(self._model, [*shards.values()], options)
        with reader, files:
            for batch, rows in embed_batches(self._model, clock.timed(reader), options.strict):
                files.add(batch.shard, batch.items, rows)
                images += len(batch.items)
                errors += sum(item.error is not None for item in batch.items)
                if update is not None:
                    rate, waiting = images / clock.seconds, clock.waited / clock.seconds
                    update(batch.shard, len(shards), f"{rate:.1f} images/s, {waiting:.0%} waiting")
            files.end()
        if update is not None:
            update(len(shards), len(shards))
        return images, errors

    def _undone(self, shards: Mapping[int, Shard]) -> dict[int, Shard]:
        """Those of the shards that have no whole file of this run and of what they are now."""
        names = {number: file_name(shard) for number, shard in shards.items()}
        absent = set(missing(self._files, names.values()))

        def is_done(number: int) -> bool:
            fingerprint = shards[number].fingerprint  # now, before anything is read
            if names[number] in absent:
                return False
            mark = read_mark(self._files / names[number])
            return mark is not None and mark[:3] == (self._digest, number, fingerprint)

        done = thread_map(is_done, names, _AHEAD)
        return {
            n: shard for (n, shard), right in zip(shards.items(), done, strict=True) if not right
        }


def embed_shards(
    model: Embedder,
    shards: Sequence[Shard],
    out: str | os.PathLike[str],
    options: Options | None = None,
    *,
    shard: tuple[int, int] | None = None,
    update: Update | None = None,
) -> Summary:
    """Embeds this process's share of some shards into files of a directory.

    Args:
      model: what embeds, on devices of this process alone.
      shards: all shards, of all processes (`data.items.find_items`).
      out: the directory, local or `gs://`.
      options: those of the run, the same in all processes.
      shard: number of the share and how many there are; None takes JAX's numbers of processes.
      update: called with the number of shards that are over, and of those there are to do.

    Raises:
      ValueError: as `ShardRun` and its `embed`.
      OSError: an input cannot be read, or a file not be written.
    """
    number, count = shard or (jax.process_index(), jax.process_count())
    run = ShardRun(model, shards, out, options)
    return run.embed(range(number, len(shards), count), update)


class _Clock:
    """Time of a run, and how much of it is spent waiting for items of an iterator."""

    def __init__(self) -> None:
        self._start, self.waited = time.perf_counter(), 0.0

    @property
    def seconds(self) -> float:
        """Time since it was made."""
        return time.perf_counter() - self._start

    def timed(self, items: Iterable[ItemBatch]) -> Iterator[ItemBatch]:
        """The same items."""
        start = time.perf_counter()
        for item in items:
            self.waited += time.perf_counter() - start
            yield item
            start = time.perf_counter()
