"""Contents that are known already: one copy in memory for all processes."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import numpy as np
from jaxtyping import Shaped


class Known:
    """Digests of contents, sorted, in a temporary file that worker processes map."""

    def __init__(self, digests: Shaped[np.ndarray, " n"]) -> None:
        """Writes them, as dtype S32, into a file that ends with this process, however that ends."""
        self._file: Any = tempfile.TemporaryFile()  # noqa: SIM115
        self._path = f"/proc/{os.getpid()}/fd/{self._file.fileno()}"
        if not os.path.exists(self._path):  # macOS: a file with a name
            self._file = tempfile.NamedTemporaryFile(prefix="siglip2_jax-known-")  # noqa: SIM115
            self._path = self._file.name
        self._digests = np.asarray(digests, "S32")
        self._digests.tofile(self._file)
        self._file.flush()

    def __contains__(self, content: str) -> bool:
        digest = content.encode()
        place = int(np.searchsorted(self._digests, digest))
        return place < len(self._digests) and self._digests[place] == digest

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self._path, "count": len(self._digests)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        count, self._digests = state["count"], np.zeros(0, "S32")
        if count:  # an empty file cannot be mapped
            self._digests = np.memmap(state["path"], "S32", "r", shape=count)

    def close(self) -> None:
        """Removes the file."""
        self._file.close()
