"""Settings of a run over shards, in `manifest.json`, and the marks by which files know theirs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
from etils import epath

from siglip2_jax.data.items.item import Columns, Shard
from siglip2_jax.fingerprint import fingerprint
from siglip2_jax.inference.embedder import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_MAX_NUM_PATCHES,
    Embedder,
)
from siglip2_jax.inference.shards.schema import EMBEDDING_TYPES, check_fields
from siglip2_jax.resumable import claim

FORMAT = "siglip2_jax embeddings, version 1"
MANIFEST, MERGED, FOLDER, SUFFIX = "manifest.json", "merged.json", "shards", ".parquet"
_MARK = b"siglip2_jax"
_WAY_OUT = "give another --out, or the settings and the input that it was begun with"


@dataclass(frozen=True)
class Options:
    """Options of a run over shards.

    Attributes:
      max_num_patches: the token budget of native-resolution models.
      batch_size: images of a program call on each device.
      embedding: the numbers that are written, "float16" or "float32".
      scaled_decode: decode large JPEGs at a fraction of their size (`data.prepare.Prepare`).
      columns: what is kept of each item, the same as for `find_items`.
      types: those of `columns.fields` that are no text, by name (`schema.FIELD_TYPES`).
      workers: processes that decode images; 0 for threads of this one, "auto" for all cores but
        one.
      strict: stop at the first image that cannot be embedded.
    """

    max_num_patches: int = DEFAULT_MAX_NUM_PATCHES
    batch_size: int = DEFAULT_BATCH_SIZE
    embedding: str = "float16"
    scaled_decode: bool = False
    columns: Columns = Columns()
    types: Mapping[str, str] = field(default_factory=dict)
    workers: int | Literal["auto"] = "auto"
    strict: bool = False

    def __post_init__(self) -> None:
        if self.embedding not in EMBEDDING_TYPES:
            raise ValueError(
                f"embeddings are written as {' or '.join(EMBEDDING_TYPES)}, got {self.embedding!r}"
            )
        check_fields(self.fields)

    @property
    def fields(self) -> dict[str, str]:
        """The type of each column that is kept, by its name."""
        return {name: self.types.get(name, "string") for name in self.columns.fields}


def directory_of(out: str | os.PathLike[str]) -> epath.Path:
    """The directory of a run.

    Raises:
      ValueError: it is in another store than Google's.
    """
    path = os.fspath(out)
    if "://" in path and not path.startswith("gs://"):
        raise ValueError(
            f"{path} is neither a local directory nor on gs://; write to a local one and copy"
        )
    return epath.Path(path)


def file_name(shard: Shard) -> str:
    """Name of the file of a shard."""
    return f"{shard.name}{SUFFIX}"


def settings_of(
    model: Embedder, shards: Sequence[Shard], options: Options, batch_size: int
) -> dict[str, Any]:
    """Everything that decides the rows of a run, as plain data.

    Args:
      model: what embeds; all its parameters are read.
      shards: all shards, of all processes.
      options: those of the run.
      batch_size: rows of a program call.
    """
    devices = jax.local_devices()[:1] if model.mesh is None else [*model.mesh.devices.flat]
    return {
        "format": FORMAT,
        "jax": jax.__version__,
        **model.identity(),
        "patches": model.preprocess.num_tokens(options.max_num_patches),
        "scaled_decode": options.scaled_decode,
        "batch_size": batch_size,
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "width": model.config.vision.width,
        "embedding": options.embedding,
        "fields": options.fields,
        "shards": len(shards),
        "names": fingerprint([shard.name for shard in shards]),
    }


def claim_manifest(out: epath.Path, settings: Mapping[str, Any]) -> str:
    """Binds a directory to its settings.

    Returns:
      The digest of the settings, which all files of the run hold.

    Raises:
      ValueError: it was begun with others.
    """
    claim(out / MANIFEST, settings, _WAY_OUT)
    return digest(settings)


def read_manifest(out: epath.Path) -> dict[str, Any]:
    """The settings of a directory.

    Raises:
      ValueError: it is none of a run over shards.
    """
    try:
        settings = json.loads((out / MANIFEST).read_bytes())
    except FileNotFoundError:
        settings = None
    except ValueError as error:
        raise ValueError(f"{out / MANIFEST} is damaged ({error})") from error
    if not isinstance(settings, dict) or settings.get("format") != FORMAT:
        raise ValueError(
            f"{out} holds no {MANIFEST} of `siglip2 embed --out DIR`; give the directory that such "
            "a command has written"
        )
    return settings


def digest(settings: Mapping[str, Any]) -> str:
    """Digest of settings."""
    return fingerprint(settings)


class Mark(NamedTuple):
    """Description of a file of embeddings, in its footer.

    Attributes:
      settings: digest of the run's settings.
      shard: number of the shard.
      fingerprint: of the shard, as it was embedded.
      rows: number of its rows.
      errors: those without an embedding.
    """

    settings: str
    shard: int
    fingerprint: str
    rows: int
    errors: int

    def encode(self) -> dict[bytes, bytes]:
        """Metadata of a Parquet file."""
        return {_MARK: json.dumps(self._asdict()).encode()}


def read_mark(path: epath.Path) -> Mark | None:
    """The mark of a file of embeddings; None of a damaged file, and of any other.

    Raises:
      OSError: it cannot be read.
    """
    import pyarrow
    from pyarrow.parquet import read_metadata

    with path.open("rb") as file:
        try:
            return Mark(**json.loads(read_metadata(file).metadata[_MARK]))
        except (pyarrow.ArrowException, KeyError, TypeError, ValueError):
            return None
        except OSError as error:
            if error.errno is not None:
                raise  # of the system; damage has no number
            return None
