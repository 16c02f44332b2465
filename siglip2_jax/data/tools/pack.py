"""Writes any source as ArrayRecord files: checked, resumable, read by `records.Records`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etils import epath

from siglip2_jax.data.example import with_name
from siglip2_jax.data.patience import patiently
from siglip2_jax.data.prefetch import thread_map
from siglip2_jax.data.records import COUNTS, SUFFIX, encode_example, write_counts
from siglip2_jax.data.sources import Examples, Incomplete, Source
from siglip2_jax.fingerprint import fingerprint
from siglip2_jax.outputs import replacing
from siglip2_jax.preprocess.decode import decode
from siglip2_jax.resumable import claim, missing, read_errors, write_errors

_AHEAD = 64


@dataclass(frozen=True)
class Summary:
    """Summary of a packing job.

    Attributes:
      examples: how many were written, in this run and before.
      skipped: how many were bad; `<name>.errors.jsonl` lists them.
      shards: number of files.
      written: number of files written in this run; 0 where the pack was finished before.
      bytes: size of all files.
      left_out: samples in the files of the source that the source itself left out.
    """

    examples: int
    skipped: int
    shards: int
    written: int
    bytes: int
    left_out: int = 0


def pack(
    source: Source,
    destination: str | os.PathLike[str],
    *,
    shard_size: int = 10_000,
    name: str = "examples",
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Writes the examples of a source, in order, to `<name>-00000-of-0000N.arrayrecord`.

    Images are kept as they are, byte for byte, but decoded to see that they can be. Examples whose
    image is damaged or that have no caption are skipped and listed in `<name>.errors.jsonl`; one
    that cannot be read at all stops the pack. A pack that was interrupted continues after its last
    whole file.

    Args:
      source: what to write. Not a mixture: its parts are packed one by one.
      destination: a local directory, made if need be.
      shard_size: examples of a file.
      name: what files are called.
      progress: called with the number of examples dealt with and the number there are.

    Raises:
      ValueError: the source cannot be opened, all its examples are bad, or the destination holds a
        pack of another source or file size.
      OSError: a file cannot be written; a SourceError where an example cannot be read.
    """
    if shard_size < 1:
        raise ValueError(f"shard_size must be at least 1, got {shard_size}")
    examples = source.open()
    total, destination = len(examples), Path(destination)
    starts = range(0, total, shard_size)
    shards = {
        f"{name}-{i:05d}-of-{len(starts):05d}{SUFFIX}": range(start, min(start + shard_size, total))
        for i, start in enumerate(starts)
    }
    settings = {
        "source": f"{source!r:.1000}",
        "source_hash": fingerprint(source),
        "examples": total,
        "shard_size": shard_size,
    }
    way_out = "choose another directory or name"
    claim(destination / f"{name}.manifest.json", settings, way_out)
    errors_file = destination / f"{name}.errors.jsonl"
    todo = missing(destination, shards)
    errors = [error for error in read_errors(errors_file) if error["shard"] not in todo]
    for shard in todo:
        with replacing(destination / shard) as temporary:
            bad = _write(examples, shards[shard], temporary, progress)
            errors += [{"shard": shard, **error} for error in bad]
            # The errors first: a shard that is there under its name is wholly accounted for.
            write_errors(errors_file, errors)
    counts = destination / f"{name}{COUNTS}"
    if todo or not counts.exists():
        write_counts([str(destination / shard) for shard in shards], counts)
    if len(errors) == total:
        raise ValueError(
            f"none of {total} examples could be packed; {errors_file} says why for each"
        )
    return Summary(
        examples=total - len(errors),
        skipped=len(errors),
        shards=len(shards),
        written=len(todo),
        bytes=sum((destination / shard).stat().st_size for shard in shards),
        left_out=examples.left_out if isinstance(examples, Incomplete) else 0,
    )


def _write(
    examples: Examples,
    indices: range,
    path: epath.Path,
    progress: Callable[[int, int], None] | None,
) -> list[dict[str, Any]]:
    """Writes a file of records; gives the errors met."""
    from array_record.python.array_record_module import ArrayRecordWriter

    errors = []
    writer = ArrayRecordWriter(str(path), "group_size:1")  # a record is read on its own
    try:
        results = thread_map(lambda index: _record(examples, index), indices, _AHEAD)
        for index, result in zip(indices, results, strict=True):
            if isinstance(result, bytes):
                writer.write(result)
            else:
                errors.append({"index": index, **result})
            if progress:
                progress(index + 1, len(examples))
    except RuntimeError as error:
        raise OSError(f"{path} cannot be written ({error})") from error
    finally:
        writer.close()
    return errors


def _record(examples: Examples, index: int) -> bytes | dict[str, Any]:
    """The record of an example, or what is wrong with it."""
    name = f"example {index}"
    try:
        example = patiently(lambda: examples[index], name)
        name = example["name"]
        if not example["captions"]:
            raise ValueError(f"{name}: it has no caption.")
        decode(example["image"], name=name)
        return encode_example(example)
    except ValueError as error:
        problem = with_name(error, name)
        return {"name": problem.name, "error": str(problem)}
