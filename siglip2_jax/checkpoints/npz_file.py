"""`.npz` files, tensor by tensor: read without pickle, written without holding the whole.

The format is a zip archive of `.npy` members (numpy.org/doc/stable, `numpy.lib.format`).
"""

from __future__ import annotations

import functools
import tokenize
import weakref
import zipfile
import zlib
from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath
from numpy.lib import format as npy

from siglip2_jax.checkpoints.table import ConversionError, Lazy, Shape
from siglip2_jax.errors import reason_of
from siglip2_jax.outputs import open_output

_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError),
    tokenize.TokenError,  # of NumPy, which tries headers that are no Python for those of Python 2
)


def read(path: epath.Path) -> dict[str, Lazy]:
    """The arrays of a file, by name; only their headers are read, compressed or not.

    Raises:
      ConversionError: the file is damaged, or holds something that is not a plain array.
    """
    stream = path.open("rb")
    try:
        archive = zipfile.ZipFile(stream)
    except zipfile.BadZipFile as error:
        stream.close()
        problem = "the .npz is cut short or damaged: copy or download it again"
        raise ConversionError([problem], str(path)) from error
    weakref.finalize(archive, stream.close)  # the last tensor that is let go closes the file

    if any(member.endswith("data.pkl") for member in archive.namelist()):
        problem = "it is a PyTorch pickle, which is never loaded; save the model as safetensors"
        raise ConversionError([problem], str(path))
    tensors, problems = {}, []
    for member in archive.namelist():
        name = member.removesuffix(".npy")
        try:
            with archive.open(member) as file:
                shape, dtype = _header(file)
        except _DAMAGE as error:
            problems.append(f"{name} is not a readable array ({reason_of(error):.200})")
            continue
        if dtype.hasobject:
            problems.append(f"{name} holds pickled Python objects, which are never loaded")
        tensors[name] = Lazy(shape, dtype, functools.partial(_read_member, archive, member))
    if problems:
        raise ConversionError(problems, str(path))
    return tensors


def write(path: epath.Path, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes arrays one at a time, uncompressed; the same arrays give the same bytes."""
    with open_output(path) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, array in tensors:
            # A ZipInfo made by hand carries no time of day.
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                npy.write_array(file, np.asarray(array, order="C"), allow_pickle=False)


def _header(file: Any) -> tuple[Shape, np.dtype]:
    version = npy.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = npy.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = npy.read_array_header_2_0(file)
    else:
        raise ValueError(f"version {version} of the .npy format is unknown")
    # numpy has no name for bfloat16 and stores it as two opaque bytes.
    return shape, np.dtype(ml_dtypes.bfloat16) if dtype == np.dtype("V2") else dtype


def _read_member(archive: zipfile.ZipFile, member: str) -> np.ndarray:
    try:
        with archive.open(member) as file:
            array = npy.read_array(file, allow_pickle=False)
    except _DAMAGE as error:
        problem = f"{member.removesuffix('.npy')} is damaged ({error})"
        raise ConversionError([problem], str(archive.filename or "")) from error
    return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array
