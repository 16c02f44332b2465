"""Writes any source as shards: checked, resumable, on any number of machines."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from etils import epath
from grain.experimental import index_shuffle

from siglip2_jax.data.example import ExampleError, with_name
from siglip2_jax.data.patience import patiently
from siglip2_jax.data.prefetch import thread_map
from siglip2_jax.data.records import COUNTS, write_counts
from siglip2_jax.data.sources import Blocked, Examples, Incomplete, Source
from siglip2_jax.data.stores.manifest import BLOCK_SIZE, Entry
from siglip2_jax.data.stores.manifest_files import ALL, Shard
from siglip2_jax.data.stores.store import File, Store, is_remote
from siglip2_jax.data.tar.blocks import index_blocks
from siglip2_jax.data.tools.manifest_job import ManifestJob
from siglip2_jax.data.tools.shard_files import KINDS, ShardKind
from siglip2_jax.fingerprint import fingerprint
from siglip2_jax.outputs import open_output, replacing
from siglip2_jax.preprocess.decode import decode
from siglip2_jax.resumable import claim, missing, read_errors, write_errors

_AHEAD = 64
_COPIED = 1 << 24


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
    kind: str = "arrayrecord",
    shard_size: int = 10_000,
    name: str = "examples",
    shard: Shard = ALL,
    shuffle: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Writes the examples of a source to `<name>-00000-of-0000N.arrayrecord`, or to tars.

    Images are kept as they are, byte for byte, but decoded to see that they can be. Examples whose
    image is damaged or that have no caption are skipped and listed in `<name>.errors.jsonl`; one
    that cannot be read at all stops the pack. A pack that was interrupted continues after its last
    whole file. Tars get a manifest.

    Args:
      source: what to write. Not a mixture: its parts are packed one by one.
      destination: a directory, made if need be; local, and for tars `gs://` as well.
      kind: "arrayrecord" or "tar".
      shard_size: examples of a file.
      name: what files are called.
      shard: which of the files to write. All shards make the pack, on any machines.
      shuffle: seed of a random order; None keeps the order of the source.
      progress: called with the number of examples dealt with and the number there are.

    Raises:
      ValueError: the source cannot be opened, all its examples are bad, or the destination holds a
        pack of another source or file size.
      OSError: a file cannot be written; a SourceError where an example cannot be read.
    """
    if shard_size < 1:
        raise ValueError(f"shard_size must be at least 1, got {shard_size}")
    if kind not in KINDS:
        raise ValueError(f"a pack is of the kind {' or '.join(KINDS)}, got {kind!r}")
    if kind == "arrayrecord" and is_remote(os.fspath(destination)):
        raise ValueError(
            f"{destination} is not a local directory, to which alone ArrayRecord files are "
            "written; use the format tar"
        )
    if os.fspath(destination).startswith("s3://"):
        raise ValueError(
            f"{destination} is neither a local directory nor on gs://; pack to a local one and copy"
        )
    examples = source.open()
    if shuffle is not None and isinstance(examples, Blocked) and examples.remote:
        raise ValueError(
            f"{source!r:.200} is read in blocks, too slowly for --shuffle; pack it in order, or "
            "from a local copy in tars or ArrayRecord files"
        )
    total, destination, suffix = len(examples), epath.Path(destination), KINDS[kind].suffix
    starts = range(0, total, shard_size)
    names = [f"{name}-{i:05d}-of-{len(starts):05d}{suffix}" for i in range(len(starts))]
    files = {
        names[i]: range(starts[i], min(starts[i] + shard_size, total))
        for i in shard.share(len(names))
    }
    settings = {
        "source": f"{source!r:.1000}",
        "source_hash": fingerprint(source),
        "examples": total,
        "shard_size": shard_size,
    }
    settings |= {} if shuffle is None else {"shuffle": shuffle}
    way_out = "choose another directory or name"
    claim(destination / f"{name}.manifest.json", settings, way_out)
    manifest = _manifest(destination, names, shard, way_out) if kind == "tar" else None
    part = "" if shard == ALL else f"-{shard.number:05d}-of-{shard.count:05d}"
    errors_file = destination / f"{name}.errors{part}.jsonl"
    todo = missing(destination, files)
    if manifest is not None:
        todo = [file for file in files if file in todo or not manifest.has(file)]
    errors = [error for error in read_errors(errors_file) if error["shard"] not in todo]
    order = _order(total, shuffle)
    first = min((places.start for places in files.values()), default=0)
    count = sum(map(len, files.values()))

    def tell(place: int) -> None:
        if progress:
            progress(place - first + 1, count)

    for file in todo:
        with _placing(destination / file) as temporary:
            bad = _write(examples, files[file], str(temporary), KINDS[kind], order, tell)
            errors += [{"shard": file, **error} for error in bad]
            # The errors first: a shard that is there under its name is wholly accounted for.
            write_errors(errors_file, errors)
            if manifest is not None:
                manifest.add(_describe(destination / file, temporary), save=True)
    if manifest is not None:
        sizes = [entry.file.size for entry in manifest.finish()]
    else:
        sizes = [(destination / file).stat().length for file in files]
        counts = destination / f"{name}{COUNTS}"
        if not missing(destination, names) and (todo or not counts.exists()):
            write_counts([str(destination / file) for file in names], counts)
    if count and len(errors) == count:
        raise ValueError(
            f"none of {count} examples could be packed; {errors_file} says why for each"
        )
    return Summary(
        examples=count - len(errors),
        skipped=len(errors),
        shards=len(files),
        written=len(todo),
        bytes=sum(sizes),
        left_out=examples.left_out if isinstance(examples, Incomplete) else 0,
    )


def _manifest(destination: epath.Path, names: list[str], shard: Shard, way_out: str) -> ManifestJob:
    return ManifestJob(
        str(destination),
        names,
        suffix=KINDS["tar"].suffix,
        pattern=f"*{KINDS['tar'].suffix}",
        block_size=BLOCK_SIZE,
        shard=shard,
        store=Store(),
        way_out=way_out,
    )


def _describe(path: epath.Path, temporary: epath.Path) -> Entry:
    """The description of a tar that is there under a temporary name; it may be copied elsewhere."""
    file = File(str(temporary), os.path.getsize(temporary), "")
    entry, _ = index_blocks(file, Store(), BLOCK_SIZE)
    return entry._replace(file=dataclasses.replace(file, path=str(path)))


@contextmanager
def _placing(path: epath.Path) -> Iterator[epath.Path]:
    """Gives a local path, whose file is put under its name unless there is an error."""
    if not is_remote(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            yield temporary
        return
    with tempfile.TemporaryDirectory() as folder:
        temporary = epath.Path(folder) / path.name
        yield temporary
        with temporary.open("rb") as content, open_output(path) as file:
            shutil.copyfileobj(content, file, _COPIED)


def _order(total: int, seed: int | None) -> Callable[[int], int]:
    """The index of the example at a place of the pack."""
    if seed is None:
        return lambda place: place
    return lambda place: index_shuffle(place, max_index=total - 1, seed=seed, rounds=4)


def _write(
    examples: Examples,
    places: range,
    path: str,
    kind: ShardKind,
    order: Callable[[int], int],
    tell: Callable[[int], None],
) -> list[dict[str, Any]]:
    """Writes a file of examples; gives the errors met."""

    def encode(place: int) -> Any:
        return _encode(examples, order(place), kind, place)

    errors = []
    with kind.open(path) as writer:
        for place, result in zip(places, thread_map(encode, places, _AHEAD), strict=True):
            if isinstance(result, ExampleError):
                errors.append({"index": order(place), "name": result.name, "error": str(result)})
            else:
                writer.write(result)
            tell(place)
    return errors


def _encode(examples: Examples, index: int, kind: ShardKind, place: int) -> Any:
    """An example as the writer takes it, or what is wrong with it."""
    name = f"example {index}"
    try:
        example = patiently(lambda: examples[index], name)
        name = example["name"]
        if not example["captions"]:
            raise ValueError(f"{name}: it has no caption.")
        decode(example["image"], name=name)
        return kind.encode(example, place)
    except ValueError as error:
        return with_name(error, name)
