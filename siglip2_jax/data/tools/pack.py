"""Writes any source as ArrayRecord files: checked, resumable, read by `records.Records`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siglip2_jax.data.prefetch import thread_map
from siglip2_jax.data.records import SUFFIX, encode_example
from siglip2_jax.data.sources import Examples, Source
from siglip2_jax.outputs import replacing, write_whole
from siglip2_jax.preprocess.decode import decode

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
    """

    examples: int
    skipped: int
    shards: int
    written: int
    bytes: int


@dataclass(frozen=True)
class _Plan:
    """Parts of a pack on disk; each shard but the last holds `shard_size` examples."""

    directory: Path
    name: str
    total: int
    shard_size: int

    @property
    def count(self) -> int:
        return -(-self.total // self.shard_size)

    @property
    def manifest(self) -> Path:
        return self.directory / f"{self.name}.manifest.json"

    @property
    def errors(self) -> Path:
        return self.directory / f"{self.name}.errors.jsonl"

    def shard(self, i: int) -> Path:
        return self.directory / f"{self.name}-{i:05d}-of-{self.count:05d}{SUFFIX}"

    def indices(self, i: int) -> range:
        return range(i * self.shard_size, min((i + 1) * self.shard_size, self.total))


def pack(
    source: Source,
    destination: str | os.PathLike[str],
    *,
    shard_size: int = 10_000,
    name: str = "examples",
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Writes the examples of a source, in order, to `<name>-00000-of-0000N.arrayrecord`.

    Images are kept as they are, byte for byte, but decoded to see that they can be. Examples that
    are unreadable or have no caption are skipped and listed in `<name>.errors.jsonl`. A pack that
    was interrupted continues after its last whole file.

    Args:
      source: what to write. Not a mixture: its parts are packed one by one.
      destination: a local directory, made if need be.
      shard_size: examples of a file.
      name: what files are called.
      progress: called with the number of examples dealt with and the number there are.

    Raises:
      ValueError: the source cannot be opened, all its examples are bad, or the destination holds a
        pack of another source or file size.
      OSError: a file cannot be written.
    """
    if shard_size < 1:
        raise ValueError(f"shard_size must be at least 1, got {shard_size}")
    examples = source.open()
    plan = _Plan(Path(destination), name, len(examples), shard_size)
    plan.directory.mkdir(parents=True, exist_ok=True)
    _claim(plan, source)
    done = {i for i in range(plan.count) if plan.shard(i).exists()}
    skipped = _forget_unfinished(plan, done)
    for i in sorted(set(range(plan.count)) - done):
        skipped += _write_shard(examples, plan, i, progress)
    if skipped == plan.total:
        raise ValueError(
            f"none of {plan.total} examples could be packed; {plan.errors} says why for each"
        )
    return Summary(
        examples=plan.total - skipped,
        skipped=skipped,
        shards=plan.count,
        written=plan.count - len(done),
        bytes=sum(plan.shard(i).stat().st_size for i in range(plan.count)),
    )


def _claim(plan: _Plan, source: Source) -> None:
    """Writes what is packed here, or makes sure that it is the same."""
    manifest = {
        "source": f"{source!r:.1000}",
        "sha256": hashlib.sha256(repr(source).encode()).hexdigest(),
        "examples": plan.total,
        "shard_size": plan.shard_size,
    }
    try:
        found = json.loads(plan.manifest.read_bytes())
    except FileNotFoundError:
        write_whole(plan.manifest, json.dumps(manifest, indent=1))
        return
    if found != manifest:
        differing = next(key for key in ("source", *manifest) if found.get(key) != manifest[key])
        raise ValueError(
            f"{plan.directory} holds a pack with another {differing} ({found.get(differing)!s:.200}"
            f", not {manifest[differing]!s:.200}); choose another directory or name"
        )


def _forget_unfinished(plan: _Plan, done: set[int]) -> int:
    """Drops the errors of shards that will be written anew; gives the number that stays."""
    try:
        lines = plan.errors.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return 0
    kept = [line for line in lines if line.endswith(b"\n") and json.loads(line)["shard"] in done]
    write_whole(plan.errors, b"".join(kept))
    return len(kept)


def _write_shard(
    examples: Examples, plan: _Plan, i: int, progress: Callable[[int, int], None] | None
) -> int:
    """Writes one file, and the errors met; gives their number."""
    from array_record.python.array_record_module import ArrayRecordWriter

    errors = []
    with replacing(plan.shard(i)) as temporary:
        writer = ArrayRecordWriter(str(temporary), "group_size:1")  # a record is read on its own
        try:
            indices = plan.indices(i)
            results = thread_map(lambda index: _record(examples, index), indices, _AHEAD)
            for index, result in zip(indices, results, strict=True):
                if isinstance(result, bytes):
                    writer.write(result)
                else:
                    errors.append({"shard": i, "index": index, **result})
                if progress:
                    progress(index + 1, plan.total)
        except RuntimeError as error:
            raise OSError(f"{temporary} cannot be written ({error})") from error
        finally:
            writer.close()
        # The errors first: a shard that is there under its name is wholly accounted for.
        with plan.errors.open("a") as file:
            file.writelines(json.dumps(error) + "\n" for error in errors)
    return len(errors)


def _record(examples: Examples, index: int) -> bytes | dict[str, Any]:
    """The record of an example, or what is wrong with it."""
    name = None
    try:
        example = examples[index]
        name = example["name"]
        if not example["captions"]:
            raise ValueError(f"{name}: it has no caption.")
        decode(example["image"], name=name)
        return encode_example(example)
    except (ValueError, OSError) as error:
        return {"name": name, "error": str(error)}
