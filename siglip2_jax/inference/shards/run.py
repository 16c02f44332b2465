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
import numpy as np
from jaxtyping import Float

from siglip2_jax.data.items.item import Item, ItemBatch, Shard
from siglip2_jax.data.prefetch import thread_map
from siglip2_jax.inference.embedder import Embedder
from siglip2_jax.inference.programs import most_rows
from siglip2_jax.inference.shards.batches import embed_batches, open_reader
from siglip2_jax.inference.shards.manifest import (
    FOLDER,
    MERGED,
    Mark,
    Options,
    claim_manifest,
    directory_of,
    file_name,
    read_mark,
    settings_of,
)
from siglip2_jax.inference.shards.schema import check_pyarrow, schema
from siglip2_jax.inference.shards.write import ShardFile
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
        seconds = max(self.seconds, 1e-9)
        rates = {"images_per_second": self.images / seconds, "data_wait": self.waited / seconds}
        return asdict(self) | rates


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
        tokens = model.preprocess.num_tokens(self._options.max_num_patches)
        devices = 1 if model.mesh is None else model.mesh.size
        self.batch_size = devices * most_rows(self._options.batch_size, tokens)
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
        start, numbers = time.perf_counter(), list(numbers)
        todo = self._undone({number: self.shards[number] for number in numbers})
        if todo:  # the run may not be as it was found to be
            (self._out / MERGED).unlink(missing_ok=True)
        images, errors, clock = 0, 0, _Clock()
        options = self._options
        reader = open_reader(self._model, [*todo.values()], options, self.batch_size)
        with reader, _Files(self, todo) as files:
            for batch, rows in embed_batches(self._model, clock.timed(reader), options.strict):
                shard, items = batch.shard, batch.items
                files.add(shard, items, rows)
                images += len(items)
                errors += sum(item.error is not None for item in items)
                if update is not None:
                    seconds = time.perf_counter() - start
                    note = f"{images / seconds:.1f} images/s, {clock.waited / seconds:.0%} waiting"
                    update(shard, len(todo), note)
            files.end()
        if update is not None:
            update(len(todo), len(todo))
        return Summary(
            out=str(self._out),
            shards=len(numbers),
            skipped=len(numbers) - len(todo),
            images=images,
            errors=errors,
            seconds=time.perf_counter() - start,
            waited=clock.waited,
        )

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

    def open_file(self, shard: Shard) -> ShardFile:
        """The file of a shard, to write."""
        settings = self.settings
        columns = schema(settings["width"], settings["embedding"], settings["fields"])
        return ShardFile(self._files / file_name(shard), columns)

    def finish_file(self, file: ShardFile, number: int, shard: Shard) -> None:
        """Puts the file of a shard under its name."""
        file.finish(Mark(self._digest, number, shard.fingerprint, file.rows, file.errors))


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


class _Files:
    """The files of some shards, one after the other; a shard without an image gets an empty one."""

    def __init__(self, run: ShardRun, shards: Mapping[int, Shard]) -> None:
        self._run, self._shards = run, list(shards.items())
        self._place, self._file = -1, None

    def add(self, place: int, items: Sequence[Item], rows: Float[np.ndarray, "n E"]) -> None:
        """Takes rows of the shard at a place among those that are written."""
        self._go_to(place).add(items, rows)

    def end(self) -> None:
        """Writes what is left."""
        if self._shards:
            self._go_to(len(self._shards) - 1)
            self._finish()

    def _go_to(self, place: int) -> ShardFile:
        while self._place < place:
            self._finish()
            self._place += 1
            self._file = self._run.open_file(self._shards[self._place][1])
        assert self._file is not None
        return self._file

    def _finish(self) -> None:
        if self._file is not None:
            self._run.finish_file(self._file, *self._shards[self._place])
            self._file = None

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.discard()


class _Clock:
    """Time that is spent waiting for items of an iterator."""

    waited = 0.0

    def timed(self, items: Iterable[ItemBatch]) -> Iterator[ItemBatch]:
        """The same items."""
        start = time.perf_counter()
        for item in items:
            self.waited += time.perf_counter() - start
            yield item
            start = time.perf_counter()
