"""`.safetensors` files, tensor by tensor, through plain reads and writes.

The safetensors library maps a file into memory, or holds all of it to write it; with these a
tensor costs its own size, and streams such as `gs://` work. The format
(huggingface.co/docs/safetensors): the length of the header in eight bytes, the header in JSON,
then the data of the tensors without gaps.
"""

from __future__ import annotations

import functools
import json
import math
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from siglip2_jax import git_lfs
from siglip2_jax.checkpoints.table import ConversionError, Lazy, Shape

DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),  # position ids of old exports
}
MAX_HEADER = 100_000_000  # the limit of the safetensors library


def read(path: epath.Path) -> dict[str, Lazy]:
    """The tensors of a file, by name; only the header is read.

    Raises:
      ConversionError: the file is not safetensors, is cut short, or has a tensor of unknown type.
    """
    size = path.stat().length
    with path.open("rb") as file:
        start = file.read(len(git_lfs.MARK))
        (length,) = struct.unpack("<Q", start[:8].ljust(8, b"\xff"))
        file.seek(8)
        header = _parse(file.read(length)) if length <= min(size, MAX_HEADER) else None
    if git_lfs.is_pointer(start):
        raise ConversionError([f"it is {git_lfs.POINTER}"], str(path))
    if header is None:
        raise ConversionError(
            ["not a readable .safetensors file: it has no header, or is cut short"], str(path)
        )
    header.pop("__metadata__", None)
    tensors, problems = {}, []
    for name, entry in header.items():
        try:
            begin, end = (8 + length + int(offset) for offset in entry["data_offsets"])
            shape, dtype = tuple(map(int, entry["shape"])), DTYPES.get(entry["dtype"])
        except (KeyError, TypeError, ValueError, OverflowError):
            problems.append(f"the description of {name} is damaged")
            continue
        if dtype is None:
            problems.append(f"{name} is {entry['dtype']}, expected a float type")
        elif (
            not 8 + length <= begin <= end <= size
            or end - begin != math.prod(shape) * dtype.itemsize
        ):
            problems.append(f"the data of {name} is cut short: copy or download the file again")
        else:
            read_tensor = functools.partial(_read_tensor, path, name, begin, shape, dtype)
            tensors[name] = Lazy(shape, dtype, read_tensor)
    if problems:
        raise ConversionError(problems, str(path))
    return tensors


def write(
    path: epath.Path, shapes: Mapping[str, Shape], tensors: Iterable[tuple[str, np.ndarray]]
) -> None:
    """Writes float32 tensors one at a time.

    Args:
      path: the file.
      shapes: of all tensors, in the order in which they come.
      tensors: name and value of each.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, shape in shapes.items():
        end = begin + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data is aligned
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for expected, (name, tensor) in zip(shapes, tensors, strict=True):
            assert name == expected and tensor.shape == shapes[name], name
            file.write(np.asarray(tensor, "<f4", order="C").reshape(-1).view(np.uint8))


def _parse(text: bytes) -> dict[str, Any] | None:
    try:
        header = json.loads(text)
    except ValueError:
        return None
    return header if isinstance(header, dict) else None


def _read_tensor(
    path: epath.Path, name: str, begin: int, shape: Shape, dtype: np.dtype
) -> np.ndarray:
    array = np.empty(shape, dtype)
    with path.open("rb") as opened:
        file: Any = opened  # which reads into memory, as etils' type does not say
        file.seek(begin)
        if file.readinto(array.reshape(-1).view(np.uint8)) != array.nbytes:
            raise ConversionError([f"the data of {name} is cut short"], str(path))
    return array
