"""Webdataset tars, as img2dataset writes them, with random access.

A sample is the members that share a key and stand together, a key being a member's path up to the
first dot of its base name (the convention of github.com/webdataset/webdataset): `key.jpg` or
another image, `key.txt` with a caption, `key.json` with fields and perhaps captions.

- A key that comes again after another one, or in the next of several joined archives, is another
  sample, called `key#2`.
- Two images, texts or JSON files of one key in a row are ambiguous: the sample is left out.
- Members with other suffixes, hidden ones, and images such as `key.mask.png` beside `key.jpg` are
  not read.
- Links, hard and symbolic, to members of the same tar are followed.

Where samples are left out, or a tar is damaged, one warning for each tar counts them and names the
first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from siglip2_jax.data.files import find_shards
from siglip2_jax.data.prefetch import thread_map
from siglip2_jax.data.sources import Examples
from siglip2_jax.data.stores.manifest_files import load_manifest
from siglip2_jax.data.stores.store import Store, is_remote
from siglip2_jax.data.tar.blocks import TarBlocks
from siglip2_jax.data.tar.index import TarIndex, index_tar
from siglip2_jax.data.tar.samples import TarExamples

SUFFIX = ".tar"
_AHEAD = 32


@dataclass(frozen=True)
class Tars:
    """Webdataset tars, local or in a store.

    With a manifest beside them (`siglip2 data index`, or a pack with `--format tar`) it is all that
    is read at the beginning, and examples are read in blocks, each with one request. Tars in a
    store need one. Without it local tars are indexed once, and the index is kept beside each as
    `<tar>.idx.npz`; it takes some 70 bytes of memory a sample.

    Attributes:
      pattern: a tar, a directory of them, or a glob; local, `gs://` or `s3://`, uncompressed.
    """

    pattern: str

    def open(self) -> Examples:
        """Reads the manifest, or the tars' indices, and makes those that are missing or stale.

        Raises:
          ValueError: there are no tars, one is no tar, they hold no samples, or tars in a store
            have no whole manifest.
          SourceError: the store cannot be read.
        """
        store = Store()
        if manifest := load_manifest(self.pattern, SUFFIX, store):
            return TarBlocks(manifest, store)
        if is_remote(self.pattern):
            raise ValueError(
                f"{self.pattern} has no manifest, without which tars in a store are not read; make "
                f"it with `siglip2 data index '{self.pattern}'`"
            )
        return TarExamples(index_tars(self.pattern))


def index_tars(pattern: str, progress: Callable[[int, int], None] | None = None) -> list[TarIndex]:
    """Indexes tars ahead of use.

    Args:
      pattern: a tar, a directory of them, or a glob.
      progress: called after every tar with the number done and the number there are.

    Returns:
      The indices, in the order of the sorted paths.

    Raises:
      ValueError: there are no tars, one is no tar, or they hold no samples.
    """
    paths = find_shards(pattern, SUFFIX)
    indices = []
    for index in thread_map(index_tar, paths, _AHEAD):
        indices.append(index)
        if progress:
            progress(len(indices), len(paths))
    if not any(map(len, indices)):
        raise ValueError(
            f"{pattern}: no sample to use in {len(paths)} tar file{'s'[: len(paths) != 1]}; "
            "expected members such as 000.jpg with 000.txt, one after the other"
        )
    return indices
