"""Files that a user names: images by path, directory or glob."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path, PurePath

from etils import epath

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .gif .tif .tiff .bmp .avif .jp2 .ppm .pgm .pbm".split()
)


def find_images(patterns: Sequence[str]) -> list[str]:
    """Expands files, directories (searched to any depth) and globs into image paths.

    A path named outright is kept whatever its suffix, so that a broken one is reported by name;
    directories and globs give files with an image's suffix. All may be on `gs://`, where an image's
    path is kept without a look at it.

    Args:
      patterns: what the user typed.

    Returns:
      Paths in the order given, sorted within a directory or glob, each once.

    Raises:
      ValueError: a pattern matches nothing.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        matches = _expand(pattern)
        if not matches:
            raise ValueError(
                f"{pattern} matches no image; expected a file, a glob or a directory with files "
                f"ending in {', '.join(sorted(IMAGE_SUFFIXES))}"
            )
        found.update(dict.fromkeys(matches))
    return list(found)


def _expand(pattern: str) -> list[str]:
    if pattern.startswith("gs://"):
        return _expand_stored(pattern)
    if os.path.isfile(pattern):
        return [pattern]
    if os.path.isdir(pattern):
        return sorted(str(path) for path in Path(pattern).rglob("*") if _is_image(path))
    matches = sorted(glob.glob(pattern, recursive=True))
    return [match for match in matches if _is_image(Path(match))]


def _expand_stored(pattern: str) -> list[str]:
    """Paths on `gs://`, where every look costs a request."""
    path = epath.Path(pattern)
    if glob.has_magic(pattern):
        if "**" in pattern:
            raise ValueError(
                f"{pattern}: ** is not read on gs://; pass the directory, which is searched to any "
                "depth"
            )
        bucket, _, inner = pattern.removeprefix("gs://").partition("/")
        matches = map(os.fspath, epath.Path(f"gs://{bucket}").glob(inner))
    elif _has_suffix(path):
        return [pattern]
    elif path.is_dir():
        # fsspec gives directories without their scheme.
        matches = (
            f"gs://{os.fspath(root).removeprefix('gs://').strip('/')}/{name}"
            for root, _, names in path.walk()
            for name in names
        )
    else:
        return [pattern] if path.exists() else []
    return sorted(match for match in matches if _has_suffix(Path(match)))


def _is_image(path: Path) -> bool:
    return _has_suffix(path) and path.is_file()


def _has_suffix(path: PurePath) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES
