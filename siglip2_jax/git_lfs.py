"""Git LFS pointers: short texts in place of large files that a clone has not fetched."""

POINTER = "a Git LFS pointer, not the file itself: fetch that with `git lfs pull`"
"""Says in an error what a file is, and the way out."""

MARK = b"version https://git-lfs"


def is_pointer(start: bytes) -> bool:
    """True for a file that begins so, with at least as many bytes as `MARK` has."""
    return start.startswith(MARK)
