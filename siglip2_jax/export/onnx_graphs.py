"""Models as ONNX graphs, for onnxruntime on servers, on phones and in browsers.

jax2onnx converts; onnxruntime folds constants, and what it runs is compared with the model before
anything appears.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from siglip2_jax.evals.prompts import embed_labels
from siglip2_jax.export.manifest import export_directory
from siglip2_jax.inference.embedder import Embedder
from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import ModelConfig
from siglip2_jax.models.siglip2 import SigLIP2, flatten
from siglip2_jax.types import Patches

GRAPHS = ("image", "text")
OPSET = 23
TOLERANCE = 1e-5
LABELS = "labels.json"
MOST_INSIDE = 1_900_000_000  # bytes of weights; a graph with more than 2 GB of them cannot be saved
WAY_OUT = (
    "in an environment of its own, as the bound of jax2onnx on orbax-checkpoint conflicts with "
    "ours: echo 'orbax-checkpoint>=0.12.4' > overrides.txt; uv venv onnx; uv pip install --python "
    "onnx --override overrides.txt siglip2_jax jax2onnx==0.17.1 onnxruntime"
)

Inputs = dict[str, jax.ShapeDtypeStruct]
Quantize = Callable[[Path, Path, Embedder], dict[str, Any]]
"""Reads graphs from one directory, writes them to another, and reports for `export.json`."""


def export_onnx(
    embedder: Embedder,
    path: str | os.PathLike[str],
    *,
    labels: Sequence[str] = (),
    quantize: Quantize | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes a model as ONNX graphs, equal to it within 1e-5 in onnxruntime.

    The directory holds `image.onnx`, `text.onnx`, `export.json` and the tokenizer. Weights of more
    than 1.9 GB are beside their graph, in `image.onnx.data` or `text.onnx.data`.

    Args:
      embedder: the model.
      path: a local path that does not exist yet, or an empty directory.
      labels: their embeddings are written to `labels.json`, for programs without the text tower.
      quantize: makes the graphs smaller, such as `onnx_int8.Int8`.
      overwrite: replace what is at `path`.

    Returns:
      What `export.json` holds, but for the list of files, and the largest difference between an
      embedding of the float32 graphs and of the model.

    Raises:
      ValueError: a package is missing, the model is not float32, or the graphs differ from it.
      FileExistsError: there is something at `path`.
    """
    check_packages()
    if embedder.dtype != "float32":
        raise ValueError(
            f"the model is loaded in {embedder.dtype}, and ONNX graphs are written in float32 or "
            "int8; leave out --dtype"
        )
    if embedder.weights != "float32":
        raise ValueError(
            f"the model's weights are rounded to {embedder.weights}, ONNX graphs are made of "
            "float32 ones; load it with weights='float32', and quantise the graphs (--int8)"
        )
    with export_directory(embedder, path, overwrite=overwrite) as (directory, description):
        directory = Path(directory)
        # The description, in short, is in each graph, too: files get separated.
        with tempfile.TemporaryDirectory(dir=directory) as scratch, _quiet():
            written = Path(scratch) if quantize else directory
            for name, (function, inputs) in _functions(embedder).items():
                _write(function, inputs, written / f"{name}.onnx", _tower_bytes(embedder, name))
            difference = _difference(embedder, written)
            if quantize:
                description["int8"] = quantize(written, directory, embedder)
                description["dtype"] = "int8"
        for name in GRAPHS:
            _sign(directory / f"{name}.onnx", description)
        description["programs"] = {
            name: {"file": f"{name}.onnx", "opset": OPSET, "inputs": _shapes(inputs)}
            for name, (_, inputs) in _functions(embedder).items()
        }
        description["versions"] |= _versions()
        if labels:
            (directory / LABELS).write_text(_label_embeddings(embedder, labels))
    return {**description, "largest_difference": difference}


def check_packages() -> None:
    """Checks that jax2onnx and onnxruntime are installed.

    Raises:
      ValueError: one is missing; the sentence says how to install it.
    """
    for package in ("jax2onnx", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ValueError(f"export to ONNX needs {package}, {WAY_OUT}") from error


def image_inputs(config: ModelConfig) -> Inputs:
    """Inputs of the image graph by name; sizes that are free have names."""
    num_patches = config.vision.num_patches or "patches"
    shape: tuple[Any, ...] = ("batch", num_patches)
    return {
        "pixels": jax.ShapeDtypeStruct((*shape, config.vision.patch_size**2 * 3), np.float32),
        "yx": jax.ShapeDtypeStruct((*shape, 2), np.int32),
        "valid": jax.ShapeDtypeStruct(shape, np.bool_),
    }


def _functions(embedder: Embedder) -> dict[str, tuple[Callable[..., Any], Inputs]]:
    """The function and the inputs of each graph."""
    # Kernels are no part of ONNX, and onnxruntime runs no loops over stacked weights fast.
    compute = Compute(scan=False, attention="xla", norm="xla")
    model = SigLIP2.from_params(embedder.config, embedder.params, compute=compute)
    ids: tuple[Any, ...] = ("batch", embedder.config.text.length)
    return {
        "image": (
            lambda pixels, yx, valid: model.encode_image(Patches(pixels, yx, valid)).image,
            image_inputs(embedder.config),
        ),
        "text": (model.encode_text, {"ids": jax.ShapeDtypeStruct(ids, np.int32)}),
    }


def _write(function: Callable[..., Any], inputs: Inputs, path: Path, weights: int) -> None:
    """Converts a function, folds its constants, and writes the graph.

    Folding makes constants of the weights that products read; without it they are slices and
    reshapes of other arrays, and `quantize_dynamic` does nothing.
    """
    import jax2onnx
    import onnx_ir
    import onnxruntime

    graph = jax2onnx.to_onnx(
        function,
        list(inputs.values()),
        model_name=path.stem,
        opset=OPSET,
        return_mode="ir",
        input_names=list(inputs),
        output_names=["embeddings"],
        normalization_mode="prefer_native",
    )
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        traced = Path(scratch) / path.name
        beside = f"{path.name}.data" if weights > MOST_INSIDE else None
        onnx_ir.save(graph, traced, external_data=beside)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Beyond "basic" come operators of its own, for the machine that it runs on.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        if beside:
            entry = "session.optimized_model_external_initializers"
            options.add_session_config_entry(f"{entry}_file_name", beside)
            options.add_session_config_entry(f"{entry}_min_size_in_bytes", "1024")
        onnxruntime.InferenceSession(traced, options, providers=["CPUExecutionProvider"])


def _sign(path: Path, description: dict[str, Any]) -> None:
    """Writes what the model is into the graph, and takes out operator sets that it does not use."""
    import onnx

    graph = onnx.load(path, load_external_data=False)
    domains = {node.domain for node in graph.graph.node}
    used = [entry for entry in graph.opset_import if entry.domain in domains]
    del graph.opset_import[:]
    graph.opset_import.extend(used)
    del graph.metadata_props[:]
    onnx.helper.set_model_props(graph, {"siglip2": json.dumps(description, sort_keys=True)})
    path.write_bytes(graph.SerializeToString(deterministic=True))


def _difference(embedder: Embedder, directory: Path) -> float:
    """Largest difference between the graphs' embeddings and the model's own, at ragged grids.

    Raises:
      ValueError: it is above 1e-5.
    """
    from siglip2_jax.export.onnx_embedder import OnnxEmbedder

    graphs, rng = OnnxEmbedder(embedder, directory), np.random.default_rng(0)
    images = sample_patches(embedder.config, rng)
    text = embedder.config.text
    ids = rng.integers(0, text.vocab_size, (3, text.length))
    difference = max(
        float(np.abs(graphs.embed_images(images) - embedder.embed_images(images)).max()),
        float(np.abs(graphs.embed_tokens(ids) - embedder.embed_tokens(ids)).max()),
    )
    if not difference <= TOLERANCE:
        raise ValueError(
            f"embeddings of the ONNX graphs in onnxruntime differ from the model's by up to "
            f"{difference:.1e}, expected at most {TOLERANCE:.0e}; try other versions of jax2onnx "
            "and onnxruntime"
        )
    return difference


def sample_patches(
    config: ModelConfig,
    rng: np.random.Generator,
    grids: Sequence[tuple[int, int]] = ((3, 20), (14, 18), (1, 70)),
) -> Patches:
    """Random patches on these grids, with NaN as padding; at fixed resolution on its own grid."""
    vision = config.vision
    if vision.num_patches is not None:
        grids = ((vision.grid, vision.grid),) * len(grids)
    most = vision.num_patches or max(rows * columns for rows, columns in grids) + 4
    pixels = np.full((len(grids), most, vision.patch_size**2 * 3), np.nan, np.float32)
    yx = np.zeros((len(grids), most, 2), np.int32)
    valid = np.zeros((len(grids), most), bool)
    for i, (rows, columns) in enumerate(grids):
        count = rows * columns
        pixels[i, :count] = rng.uniform(-1, 1, (count, pixels.shape[2]))
        yx[i, :count] = np.indices((rows, columns)).reshape(2, -1).T
        valid[i, :count] = True
    return Patches(pixels=pixels, yx=yx, valid=valid)


def _label_embeddings(embedder: Embedder, labels: Sequence[str]) -> str:
    """Labels and their embeddings as JSON."""
    rows = embed_labels(embedder, labels)
    return json.dumps({"labels": list(labels), "embeddings": rows.tolist()}, ensure_ascii=False)


def _tower_bytes(embedder: Embedder, name: str) -> int:
    """Bytes of the float32 weights of a graph."""
    tower = {"image": "vision", "text": "text"}[name]
    return sum(4 * np.size(x) for x in flatten(embedder.params[tower]).values())


def _shapes(inputs: Inputs) -> dict[str, list[Any]]:
    return {name: [np.dtype(x.dtype).name, *x.shape] for name, x in inputs.items()}


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("jax2onnx", "onnx", "onnxruntime")}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the notes of the converter, which are about its own insides."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logging.disable(logging.NOTSET)
