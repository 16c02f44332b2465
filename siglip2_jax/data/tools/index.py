"""Describes tars and Parquet files in a manifest, with which they are read in blocks."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from siglip2_jax.data import parquet, tars
from siglip2_jax.data.parquet_footer import check_pyarrow, index_rows, usual_group
from siglip2_jax.data.prefetch import thread_map
from siglip2_jax.data.stores.manifest import BLOCK_SIZE, Entry
from siglip2_jax.data.stores.manifest_files import ALL, FOLDER, Shard, folder_of, inner_pattern
from siglip2_jax.data.stores.store import File, Store, is_remote, name_in
from siglip2_jax.data.tar.blocks import index_blocks
from siglip2_jax.data.tar.index import index_tar
from siglip2_jax.data.tools.manifest_job import ManifestJob

_AHEAD = 32
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Indexed:
    """Summary of a job of indexing.

    Attributes:
      files: how many were indexed, in this run and before.
      examples: how many they hold.
      left_out: samples in them that are none of the examples.
      damaged: files that this run could not read to their end.
      remarks: what was left out or odd in the files of this run, and how often.
    """

    files: int
    examples: int
    left_out: int
    damaged: int
    remarks: dict[str, int]


def index(
    pattern: str,
    *,
    shard: Shard = ALL,
    progress: Callable[[int, int], None] | None = None,
    store: Store | None = None,
) -> Indexed:
    """Writes the manifest of tars or Parquet files, or a part of it.

    It goes into the folder `manifest` beside the files. A job that was interrupted continues. For
    local tars, the index that single examples are read by is written beside each as well.

    Args:
      pattern: a file, a directory or a glob; local, `gs://` or `s3://`.
      shard: the share of the files to index. All shares make the manifest, on any machines.
      progress: called with the number of files done and the number there are in the share.
      store: reads and writes.

    Raises:
      ValueError: there are no files, one is damaged, or there is a manifest of other files.
      OSError: a file cannot be read or written.
    """
    store = store or Store()
    files, suffix = _files(pattern, store)
    folder = folder_of(pattern, suffix)
    block_size = BLOCK_SIZE
    if suffix == parquet.SUFFIX:
        check_pyarrow()
        block_size = usual_group(index_rows(files[0], store)[1], files[0].path)
    job = ManifestJob(
        folder,
        [name_in(folder, file.path) for file in files],
        suffix=suffix,
        pattern=inner_pattern(pattern, suffix),
        block_size=block_size,
        shard=shard,
        store=store,
        way_out=f"remove {folder}/{FOLDER} to index all anew, or use a folder for each data set",
    )
    share = [files[i] for i in shard.share(len(files))]
    todo = [file for file in share if not job.knows(file)]
    damaged, remarks = 0, Counter[str]()
    describe = partial(_describe, store=store, block_size=block_size)
    for number, (entry, counts, whole) in enumerate(thread_map(describe, todo, _AHEAD), 1):
        job.add(entry)
        remarks.update(counts)
        damaged += not whole
        if progress:
            progress(len(share) - len(todo) + number, len(share))
    done = job.finish()
    left_out = sum(entry.left_out for entry in done)
    return Indexed(len(done), sum(x.count for x in done), left_out, damaged, dict(remarks))


def _files(pattern: str, store: Store) -> tuple[list[File], str]:
    """The files that are meant, and their suffix."""
    if pattern.endswith(parquet.SUFFIX):
        return store.list(pattern, parquet.SUFFIX), parquet.SUFFIX
    try:
        return store.list(pattern, tars.SUFFIX), tars.SUFFIX
    except ValueError as error:
        try:
            return store.list(pattern, parquet.SUFFIX), parquet.SUFFIX
        except ValueError:
            raise error from None


def _describe(file: File, store: Store, block_size: int) -> tuple[Entry, dict[str, int], bool]:
    """The description of a file, remarks on it by their number, and whether it is whole."""
    if file.path.endswith(parquet.SUFFIX):
        return index_rows(file, store)[0], {}, True
    if not is_remote(file.path):
        index_tar(file.path)
    entry, index = index_blocks(file, store, block_size)
    if index.warning and is_remote(file.path):
        _log.warning("%s", index.warning)
    counts = {reason: remark.count for reason, remark in index.remarks.items()}
    return entry, counts, index.damage is None
