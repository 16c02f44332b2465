"""Runs an exported SigLIP 2 with JAX, NumPy and flatbuffers (with which `jax.export` reads) alone.

For the files beside it, which `siglip2 export --to stablehlo` wrote; their export.json says how
images and texts become these arrays. Every new batch size and number of patches is compiled once.
"""

import json
from pathlib import Path

import jax
import numpy as np
from jax import export


def load(directory=Path(__file__).parent):
    """The model of a directory."""
    return Model(Path(directory))


class Model:
    """An exported model; `settings` is what its export.json holds."""

    def __init__(self, directory):
        self.settings = json.loads((directory / "export.json").read_text())
        self._programs, self._arrays = {}, read_safetensors(directory / "model.safetensors")
        for name, entry in self.settings["programs"].items():
            program = read_program(directory / entry["file"], self.settings["versions"]["jax"])
            (weights, *inputs), _ = program.in_tree.unflatten(program.in_avals)
            self._programs[name] = jax.jit(program.call), list(weights), inputs

    def embed_images(self, pixels, yx, valid):
        """Unit-length embeddings [b, E]: pixels [b, n, P], yx [b, n, 2] and valid [b, n] in."""
        return self._run("image", pixels=pixels, yx=yx, valid=valid)

    def patch_tokens(self, pixels, yx, valid):
        """Tokens [b, n, D] of the same patches."""
        return self._run("tokens", pixels=pixels, yx=yx, valid=valid)

    def embed_tokens(self, ids):
        """Unit-length embeddings [b, E] of token ids [b, T]."""
        rows = self.settings["text"]["vocab_size"]
        if np.size(ids) and not 0 <= np.min(ids) <= np.max(ids) < rows:
            raise ValueError(f"ids are {np.min(ids)} to {np.max(ids)}, expected 0 to {rows - 1}")
        return self._run("text", ids=ids)

    def logits(self, images, texts):
        """Logits [b, c] of embeddings of images and texts; a sigmoid makes them probabilities."""
        t, b = (np.float32(self.settings["logit"][name]) for name in "tb")
        return np.exp(t) * (images @ texts.T) + b

    def _run(self, name, **inputs):
        call, paths, avals = self._programs[name]
        sizes, arrays = {}, []
        for (key, x), aval in zip(inputs.items(), avals, strict=True):
            x = np.asarray(x)
            expected = f"{aval.dtype} [{', '.join(str(sizes.get(str(d), d)) for d in aval.shape)}]"
            sizes = dict(zip(map(str, aval.shape), x.shape, strict=False)) | sizes
            shape = tuple(d if isinstance(d, int) else sizes.get(str(d)) for d in aval.shape)
            if x.shape != shape or x.size == 0 or x.dtype.kind != aval.dtype.kind:
                raise ValueError(f"{key} is {x.dtype} {list(x.shape)}, expected {expected}")
            arrays.append(x.astype(aval.dtype))
        # Weights go to the device when a program first needs them, and stay there.
        self._arrays |= {path: jax.device_put(self._arrays[path]) for path in paths}
        return np.asarray(call({path: self._arrays[path] for path in paths}, *arrays))


def read_program(path, version):
    """The program of a file that this version of JAX wrote."""
    low = export.minimum_supported_calling_convention_version
    high = export.maximum_supported_calling_convention_version
    try:
        program = export.deserialize(bytearray(path.read_bytes()))
        program.mlir_module()  # raises where the operations are too new
        if low <= program.calling_convention_version <= high:
            return program
        raise ValueError(f"calling convention {program.calling_convention_version}")
    except (ValueError, RuntimeError) as error:
        way_out = f"use JAX {version}, or one up to 6 months newer, or export again"
        raise ValueError(f"JAX {jax.__version__} cannot read {path}: {way_out}") from error


def read_safetensors(path):
    """Float32 tensors of a file by name, read when they are used."""
    data = np.memmap(path, np.uint8, "r")
    start = 8 + data[:8].view("<u8").item()
    return {
        name: data[start:][slice(*entry["data_offsets"])].view("<f4").reshape(entry["shape"])
        for name, entry in json.loads(data[8:start].tobytes()).items()
        if name != "__metadata__"
    }
