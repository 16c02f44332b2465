"""Files that a user names: images and shards by path, directory or glob.

Hidden files and folders are never looked at unless they are named: what begins with a dot, such as
the copies in `.ipynb_checkpoints`, and `__MACOSX`. Files of other kinds are passed over, with one
warning for each directory or glob that says how many there are of which.
"""

from __future__ import annotations

import glob
import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePath

from etils import epath

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .gif .tif .tiff .bmp .avif .jp2 .ppm .pgm .pbm .heic .heif "
    ".hif".split()
)
_SHOWN = 5  # kinds of files in one warning
_log = logging.getLogger(__name__)


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
    images: dict[str, None] = {}
    for pattern in patterns:
        if pattern.startswith("gs://"):
            matches = _find_stored_images(pattern)
        else:
            matches = _find(pattern, IMAGE_SUFFIXES, depth=None)
        if not matches:
            raise ValueError(
                f"{pattern} matches no image; expected a file, a glob or a directory with files "
                f"ending in {', '.join(sorted(IMAGE_SUFFIXES))}{suggest_glob(pattern)}"
            )
        images.update(dict.fromkeys(matches))
    return list(images)


def find_shards(pattern: str, suffix: str) -> list[str]:
    """Expands a file, a directory or a glob into the paths of files with a suffix, sorted.

    Args:
      pattern: a file (whatever its suffix), a directory whose files are meant, or a glob.
      suffix: such as ".tar".

    Raises:
      ValueError: nothing is found.
    """
    shards = _find(pattern, {suffix}, depth=1, described_by={".json", ".jsonl", ".npz"})
    if not shards:
        raise ValueError(
            f"{pattern} matches no file; expected a {suffix} file, a directory of them or a glob "
            f"(mount gs:// with gcsfuse){suggest_glob(pattern)}"
        )
    return shards


def suggest_glob(pattern: str) -> str:
    """The end of a message on a pattern that matches nothing: a glob for one with braces."""
    wider = re.sub(r"\{[^{}]*\}", "*", pattern)
    return f"; braces are not expanded, write the glob {wider}" if wider != pattern else ""


def read_at(descriptor: int, start: int, size: int) -> bytes:
    """The bytes of an open file from a place on; fewer than `size` where it ends before."""
    data = b""
    while len(data) < size:  # a system call gives at most 2 GiB, and network disks less
        piece = os.pread(descriptor, size - len(data), start + len(data))
        if not piece:
            break
        data += piece
    return data


def is_hidden(name: str) -> bool:
    """True for the name of a file or folder that scans leave out."""
    return name.startswith(".") or name == "__MACOSX"


def _find(
    pattern: str,
    suffixes: Collection[str],
    *,
    depth: int | None,
    described_by: Collection[str] = (),
) -> list[str]:
    """Local files with one of the suffixes, sorted, of directories to a depth; None is any."""
    if os.path.isfile(pattern):
        return [pattern]
    if os.path.isdir(pattern):
        paths = _walk(pattern, depth)
    else:
        paths = filter(os.path.isfile, glob.iglob(pattern, recursive=True))
    return select_files(pattern, paths, suffixes, described_by)


def _walk(directory: str, depth: int | None) -> Iterator[str]:
    """Files of a directory. Links to folders are followed, except to those they are in."""
    for root, folders, names in islice(os.walk(directory, followlinks=True), depth):
        folders[:] = [
            name for name in folders if not is_hidden(name) and not _leads_back(Path(root, name))
        ]
        folder = str(Path(root))  # once for all: a path is ten times as dear as a text
        yield from names if folder == "." else (os.path.join(folder, name) for name in names)


def _leads_back(folder: Path) -> bool:
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def _find_stored_images(pattern: str) -> list[str]:
    """Images on `gs://`, where every look costs a request."""
    path = epath.Path(pattern)
    if glob.has_magic(pattern):
        if "**" in pattern:
            raise ValueError(
                f"{pattern}: ** is not read on gs://; pass the directory, which is searched to any "
                "depth"
            )
        bucket, _, inner = pattern.removeprefix("gs://").partition("/")
        paths = map(os.fspath, epath.Path(f"gs://{bucket}").glob(inner))
    elif path.suffix.lower() in IMAGE_SUFFIXES:
        return [pattern]
    elif path.is_dir():
        # fsspec gives directories without their scheme.
        paths = (
            f"gs://{os.fspath(root).removeprefix('gs://').strip('/')}/{name}"
            for root, _, names in path.walk()
            for name in names
        )
    else:
        return [pattern] if path.exists() else []
    return select_files(pattern, paths, IMAGE_SUFFIXES)


def select_files(
    pattern: str,
    paths: Iterable[str],
    suffixes: Collection[str],
    described_by: Collection[str] = (),
) -> list[str]:
    """Visible files with one of the suffixes, sorted; a warning counts the others.

    Args:
      pattern: what the user typed; names in it are not hidden.
      paths: what it matches.
      suffixes: of the files that are meant.
      described_by: suffixes of files that belong beside them and need no warning.
    """
    typed = set(PurePath(pattern).parts)
    selected, suffix_counts = [], Counter()
    hidden: dict[str, bool] = {}  # folders
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in hidden:
            hidden[folder] = any(map(is_hidden, set(PurePath(folder).parts) - typed))
        if hidden[folder] or (is_hidden(name) and name not in typed):
            continue
        if (suffix := os.path.splitext(name)[1].lower()) in suffixes:
            selected.append(path)
        elif suffix not in described_by:
            suffix_counts[suffix or "without a suffix"] += 1
    if count := suffix_counts.total():
        kinds = [f"{number} {kind}" for kind, number in suffix_counts.most_common(_SHOWN)]
        if len(suffix_counts) > _SHOWN:
            kinds.append("…")
        plural = "file is" if count == 1 else "files are"
        _log.warning("%s: %d other %s passed over (%s)", pattern, count, plural, ", ".join(kinds))
    return sorted(selected)
