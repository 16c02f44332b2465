"""Git LFS pointers: short texts in place of large files that a clone has not fetched."""

import os

POINTER = "a Git LFS pointer, not the file itself: fetch that with `git lfs pull`"
"""Says in an error what a file is, and the way out."""

MARK = b"version https://git-lfs"


def is_pointer(start: bytes) -> bool:
    """True for a file that begins so, with at least as many bytes as `MARK` has."""
    return start.startswith(MARK)


def is_pointer_file(path: str | os.PathLike[str]) -> bool:
    """True for a local file that is a pointer: asked of one that cannot be read as what it is."""
    with open(path, "rb") as file:
        return is_pointer(file.read(len(MARK)))
