"""Programs for JAX alone: each one file for CPUs, NVIDIA GPUs and TPUs, with weights apart."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import export as jax_export

from siglip2_jax.checkpoints import safetensors_file
from siglip2_jax.checkpoints.table import Progress, counted
from siglip2_jax.export import stablehlo_loader
from siglip2_jax.export.manifest import export_directory
from siglip2_jax.inference.embedder import Embedder
from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import ModelConfig
from siglip2_jax.models.siglip2 import SigLIP2, flatten, normalize, unflatten
from siglip2_jax.types import Patches

PLATFORMS = ("cpu", "cuda", "tpu")
WEIGHTS = "model.safetensors"
LOADER = "siglip2_exported.py"

Weights = dict[str, jax.Array]


def export_stablehlo(
    embedder: Embedder,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Writes a model as programs that `jax.export` reads, with a loader beside them.

    The directory holds `image.jax_export` (embeddings of images), `tokens.jax_export` (their patch
    tokens), `text.jax_export`, the weights that these take as their first argument
    (`model.safetensors`), `siglip2_exported.py`, which runs them, `siglip2_inputs.py`, which makes
    their inputs, both without this package, `export.json` and the tokenizer.

    Args:
      embedder: the model; its `dtype` is that of the towers' matrix products.
      path: a local path that does not exist yet, or an empty directory.
      overwrite: replace what is at `path`.
      progress: called after every tensor.

    Returns:
      What `export.json` holds, but for the list of files.

    Raises:
      ValueError: the path is not local, weights are not float32, or `flatbuffers` is not installed.
      FileExistsError: there is something at `path`.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise ValueError(
            "jax.export writes programs with the package flatbuffers, which is not installed: "
            "pip install flatbuffers"
        )
    weights = {name: np.asarray(x) for name, x in flatten(embedder.params).items()}
    if rounded := {x.dtype.name for x in weights.values()} - {"float32"}:
        raise ValueError(
            f"the model's weights are rounded to {', '.join(sorted(rounded))}, exports hold "
            "float32; load it with weights='float32'"
        )
    with export_directory(embedder, path, overwrite=overwrite) as (directory, description):
        description["runs_with"] = (
            f"JAX {jax.__version__}, or one built up to 6 months later or 3 weeks earlier; numpy; "
            "flatbuffers"
        )
        description["programs"] = {}
        for name, program in export_programs(embedder.config, embedder.dtype).items():
            file = f"{name}.jax_export"
            (directory / file).write_bytes(bytes(program.serialize()))
            description["programs"][name] = {"file": file, **_interface(program)}
        shapes = {name: x.shape for name, x in weights.items()}
        tensors = counted(weights.items(), len(weights), progress)
        safetensors_file.write(directory / WEIGHTS, shapes, tensors)
        (directory / LOADER).write_bytes(Path(stablehlo_loader.__file__).read_bytes())
    return description


def export_programs(config: ModelConfig, dtype: str) -> dict[str, jax_export.Exported]:
    """Programs "image", "tokens" and "text" of a model, for any weights and batch size.

    Native resolution takes any number of patches. The same model gives the same bytes.
    """
    # Kernels are made for one platform; XLA's own attention and norms run on all.
    compute = Compute(dtype=dtype, attention="xla", norm="xla")
    model = nnx.eval_shape(lambda: SigLIP2(config, compute=compute, rngs=nnx.Rngs(0)))
    vision, text = nnx.graphdef(model.vision), nnx.graphdef(model.text)
    shapes = flatten(nnx.to_pure_dict(nnx.state(model)))

    def encode(weights: Weights, *image: jax.Array) -> tuple[jax.Array, jax.Array]:
        return nnx.merge(vision, unflatten(weights)["vision"])(Patches(*image))

    def embed_image(weights, pixels, yx, valid):
        return normalize(encode(weights, pixels, yx, valid)[1])

    def patch_tokens(weights, pixels, yx, valid):
        return encode(weights, pixels, yx, valid)[0]

    def embed_text(weights, ids):
        return normalize(nnx.merge(text, unflatten(weights)["text"])(ids))

    b, n = jax_export.symbolic_shape("b, n")
    patches = (b, config.vision.num_patches or n)
    images = (
        jax.ShapeDtypeStruct((*patches, config.vision.patch_size**2 * 3), np.float32),
        jax.ShapeDtypeStruct((*patches, 2), np.int32),
        jax.ShapeDtypeStruct(patches, np.bool_),
    )
    ids = jax.ShapeDtypeStruct((b, config.text.length), np.int32)

    def export(tower: str, function: Callable[..., jax.Array], *inputs: jax.ShapeDtypeStruct):
        weights = {path: x for path, x in shapes.items() if path.startswith(f"{tower}/")}
        with _without_locations(), jax.default_matmul_precision("highest"):
            return jax_export.export(jax.jit(function), platforms=PLATFORMS)(weights, *inputs)

    return {
        "image": export("vision", embed_image, *images),
        "tokens": export("vision", patch_tokens, *images),
        "text": export("text", embed_text, ids),
    }


@contextmanager
def _without_locations() -> Iterator[None]:
    """Keeps names and lines of source files out of programs, which would differ by machine."""
    option = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, option)
    jax.config.update(option, 0)
    try:
        yield
    finally:
        jax.config.update(option, before)


def _interface(program: jax_export.Exported) -> dict[str, Any]:
    """Inputs but for the weights, outputs, and what can run the program, for JSON."""
    (_, *inputs), _ = program.in_tree.unflatten(program.in_avals)
    return {
        "inputs": [x.str_short() for x in inputs],
        "outputs": [x.str_short() for x in program.out_avals],
        "platforms": program.platforms,
        "calling_convention": program.calling_convention_version,
    }
