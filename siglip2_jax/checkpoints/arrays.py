"""Arrays of trees that Orbax has written, read one by one.

Orbax opens all arrays of a tree to read one, and describes each that it cannot open at length.
TensorStore, through which it reads, does neither.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from etils import epath

from siglip2_jax.checkpoints.table import Shape

# What TensorStore says of files that are not as they were written; all else is the store's fault.
# Python gets an error of INVALID_ARGUMENT or OUT_OF_RANGE without its status.
_DAMAGE = ("NOT_FOUND", "DATA_LOSS", "FAILED_PRECONDITION", "OUT_OF_RANGE", "INVALID_ARGUMENT", "")


TREE = "_METADATA"  # of a tree: its arrays


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
    with _telling(tree):
        return _opening(tree, path).result().read().result()


def describe_arrays(tree: epath.Path, paths: Iterable[str]) -> dict[str, tuple[Shape, np.dtype]]:
    """Reads shapes and dtypes of arrays of a tree, many at a time; none of their values.

    Raises:
      DamagedTree: one is not there, or files are damaged.
      OSError: the store cannot be read.
    """
    opening = {path: _opening(tree, path) for path in paths}
    with _telling(tree):
        arrays = {path: future.result() for path, future in opening.items()}
    return {path: (tuple(x.shape), x.dtype.numpy_dtype) for path, x in arrays.items()}


def list_arrays(step: epath.Path, tree: str) -> list[str]:
    """Paths of the arrays that a tree of a checkpoint lists.

    Raises:
      DamagedTree: the list is missing or damaged.
    """
    tree_metadata = read_description(step, f"{tree}/{TREE}").get("tree_metadata")
    if not tree_metadata:
        raise DamagedTree(f"{tree}/ lists no arrays")
    try:
        arrays = tree_metadata.values()
        return ["/".join(key["key"] for key in array["key_metadata"]) for array in arrays]
    except (AttributeError, KeyError, TypeError):
        raise DamagedTree(f"{tree}/{TREE} is damaged") from None


def read_description(step: epath.Path, name: str) -> dict[str, Any]:
    """Content of a checkpoint's file that holds an object of JSON.

    Raises:
      DamagedTree: it is missing or damaged.
    """
    try:
        value = json.loads((step / name).read_bytes())
    except FileNotFoundError:
        raise DamagedTree(f"{name} is missing") from None
    except (RecursionError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise DamagedTree(f"{name} is damaged")
    return value


def _opening(tree: epath.Path, path: str) -> Any:
    """TensorStore's future of an array."""
    import tensorstore  # slow to import

    base = f"{tree}/" if "://" in str(tree) else f"file://{tree}/"
    store = {"driver": "ocdbt", "base": base, "path": path.replace("/", ".") + "/"}
    return tensorstore.open({"driver": "auto", "kvstore": store}, open=True)


def is_of_the_store(error: BaseException) -> bool:
    """True for errors of TensorStore that are not about content.

    They begin with a status, as do those of arrays whose collective broke, which name its library.
    """
    collective = re.match(r"[A-Z_]+: (Gloo|NCCL) ", str(error))
    return isinstance(error, ValueError) and not collective and _status(error) not in _DAMAGE


def _status(error: ValueError) -> str:
    """The status with which an error of TensorStore begins; empty where it has none."""
    found = re.match(r"([A-Z]+(?:_[A-Z]+)*): ", str(error))
    return found[1] if found else ""


@contextlib.contextmanager
def _telling(tree: epath.Path) -> Iterator[None]:
    """Tells damaged files from a store that cannot be read, in errors of TensorStore."""
    try:
        yield
    except ValueError as error:
        if _status(error) not in _DAMAGE:
            raise OSError(str(error)) from error
        raise DamagedTree(f"files of {tree.name}/ are missing or damaged") from error
