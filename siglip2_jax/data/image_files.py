"""Image files by their paths: read whole, and as a source of images without captions."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from etils import epath

from siglip2_jax.data.example import ExampleError, SourceError, make_example
from siglip2_jax.data.patience import of_example_file
from siglip2_jax.data.sources import Examples
from siglip2_jax.strings import Strings


def read_image(path: str) -> bytes:
    """The bytes of an image file, local or in a store.

    Raises:
      ExampleError: it is not in its folder, a folder itself, or has a name that no file has.
      SourceError: its folder is not there either, as where a disk is not mounted.
      OSError: it cannot be read.
    """
    file = epath.Path(path)
    try:
        with of_example_file(path):
            return file.read_bytes()
    except FileNotFoundError as error:
        if not file.parent.is_dir():
            raise SourceError(
                f"{path}: there is no folder {file.parent}; mount it, or put it back"
            ) from error
        raise ExampleError(f"{path}: no such file.") from error


@dataclass(frozen=True, eq=False, repr=False)
class ImageFiles:
    """Image files without captions; an example's name is its path.

    Attributes:
      paths: local or `gs://`.
    """

    paths: Strings

    def open(self) -> Examples:
        """The files, which are read one by one later."""
        return _Files(self.paths)

    def __repr__(self) -> str:
        digest = hashlib.sha256(self.paths.data.tobytes())
        digest.update(self.paths.offsets.tobytes())
        return f"ImageFiles({len(self.paths)} files, {digest.hexdigest()[:16]})"


class _Files:
    def __init__(self, paths: Strings) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def without_image(self, index: int, /) -> dict[str, Any]:
        return make_example(b"", (), self._paths[index], {})

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        path = self._paths[index]
        return make_example(read_image(path), (), path, {})
