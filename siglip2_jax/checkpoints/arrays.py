"""Arrays of trees that Orbax has written, read one by one.

Orbax opens all arrays of a tree to read one, and describes each that it cannot open at length.
TensorStore, through which it reads, does neither.
"""

from __future__ import annotations

import numpy as np
from etils import epath

# What TensorStore says of files that are not as they were written; all else is the store's fault.
_DAMAGE = ("NOT_FOUND", "DATA_LOSS", "OUT_OF_RANGE", "INVALID_ARGUMENT", "FAILED_PRECONDITION")


class DamagedTree(ValueError):
    """Error for a tree with missing or damaged files; the message is a phrase."""


def read_array(tree: epath.Path, path: str) -> np.ndarray:
    """Reads one whole array of a tree.

    Args:
      tree: directory of the tree.
      path: of the array within it, such as `vision/pos/table`.

    Raises:
      DamagedTree: it is not there, or files are damaged.
      OSError: the store cannot be read.
    """
    import tensorstore  # slow to import

    base = f"{tree}/" if "://" in str(tree) else f"file://{tree}/"
    store = {"driver": "ocdbt", "base": base, "path": path.replace("/", ".") + "/"}
    try:
        array = tensorstore.open({"driver": "auto", "kvstore": store}, open=True).result()
        return array.read().result()
    except ValueError as error:
        if not str(error).startswith(_DAMAGE):
            raise OSError(str(error)) from error
        raise DamagedTree(f"files of {tree.name}/ are missing or damaged") from error
