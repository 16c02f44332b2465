"""Speed of both towers against transformers and onnxruntime, and of preprocessing, on this machine.

All sides run in one process, taking turns, on the same random weights and inputs: B/16 NaFlex at
256 tokens and text of 64 tokens. Prints items per second of each side (median, range), its ratio to
the first one (above 1: faster), processor time, the memory of its weights, and the cosine to the
first one's rows. Needs torch and transformers; for onnxruntime, which runs what torch exports, also
onnx and onnxruntime. With one side, the peak memory of the process is that of the side.

    python scripts/bench_inference.py [--rounds 7] [--threads 2] [--sides NAME ...] [--json FILE]
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import resource
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from siglip2_jax import Embedder, Patches, load
from siglip2_jax.models.config import two_towers
from siglip2_jax.models.siglip2 import init_params
from siglip2_jax.preprocess.image import ImagePreprocessor

TOKENS = 256
GRID = np.indices((16, 16)).reshape(2, -1).T.astype(np.int32)
HERE: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32", "weights": "float32"},
    "bfloat16": {"dtype": "bfloat16", "weights": "bfloat16"},
    "int8": {"dtype": "float32", "weights": "int8"},
}
"""Our models, as arguments of `load`, by the names of their sides."""
SIDES = (
    *HERE,
    *(f"transformers-{name}" for name in ("float32", "bfloat16")),
    *(f"onnxruntime-{name}" for name in ("float32", "int8")),
)


class Side(NamedTuple):
    """One of the programs that are compared.

    Attributes:
      run: does the work and gives its rows, if there are any to compare.
      megabytes: of weights; 0 if it has none.
    """

    run: Callable[[], Any]
    megabytes: float = 0.0


def compare(name: str, count: int, sides: dict[str, Side], rounds: int) -> dict[str, Any]:
    """Times sides in turns.

    Args:
      name: of the measurement.
      count: items that one call handles.
      sides: by name; ratios and cosines are to the first.
      rounds: how often each runs, after one run to warm up.

    Returns:
      Figures of each side, by its name.
    """
    rows = [side.run() for side in sides.values()]
    seconds, busy = np.zeros((2, rounds, len(sides)))
    for i in range(rounds):
        # The order turns every round, so that no side always follows the same other.
        for k in np.roll(np.arange(len(sides)), i)[:: 1 if i % 2 else -1]:
            start, cpu = time.perf_counter(), time.process_time()
            list(sides.values())[k].run()
            seconds[i, k] = time.perf_counter() - start
            busy[i, k] = time.process_time() - cpu
    result: dict[str, Any] = {"name": name, "sides": {}}
    for k, (label, side) in enumerate(sides.items()):
        rates, ratio = count / seconds[:, k], seconds[:, 0] / seconds[:, k]
        figures = {
            "per_s": [float(f(rates)) for f in (np.median, np.min, np.max)],
            "ratio": [float(f(ratio)) for f in (np.median, np.min, np.max)],
            "cpu_s_per_item": float(np.median(busy[:, k])) / count,
            "megabytes": side.megabytes,
        }
        text = "{:8.2f}/s ({:.2f}-{:.2f})".format(*figures["per_s"])
        text += "  ratio {:.2f} ({:.2f}-{:.2f})".format(*figures["ratio"])
        text += f"  {figures['cpu_s_per_item'] * 1000:7.1f} ms of processor"
        if rows[k] is not None:
            cosines = np.sum(unit(rows[k]) * unit(rows[0]), -1)
            figures["cosine"] = [float(cosines.min()), float(cosines.mean())]
            text += f"  {side.megabytes:6.1f} MB  cosine {cosines.min():.5f}"
        result["sides"][label] = figures
        print(f"{name:28} {label:22} {text}", flush=True)
    return result


def unit(rows: Any) -> np.ndarray:
    """Rows of unit length, from an array of any library."""
    rows = np.asarray(rows.float() if hasattr(rows, "float") else rows, np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def megabytes(arrays: Any) -> float:
    """Memory of a tree of arrays."""
    return sum(x.nbytes for x in jax.tree.leaves(arrays)) / 1e6


def make_model(directory: str, vocab_size: int) -> Path:
    """A B/16 NaFlex with random weights, as transformers reads it."""
    path = Path(directory) / "model"
    config = two_towers("B", patch_size=16, image_size=None, vocab_size=vocab_size)
    params = init_params(config, jax.random.key(0))
    Embedder(config, params, ImagePreprocessor(16, None)).save(path, "hf")
    return path


def our_sides(name: str, path: Path, image: Patches, ids: np.ndarray) -> tuple[Side, Side]:
    """Both towers of a model of ours."""
    model, batch = load(path, **HERE[name]), len(ids)
    return (
        Side(
            lambda: model.embed_images(image, batch_size=batch), megabytes(model.params["vision"])
        ),
        Side(lambda: model.embed_tokens(ids, batch_size=batch), megabytes(model.params["text"])),
    )


def torch_towers(path: Path, dtype: str) -> tuple[Any, Any]:
    """Both towers of transformers (sdpa), as modules."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(
        path, attn_implementation="sdpa", dtype=getattr(torch, dtype)
    ).eval()

    class Images(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.tower = model.vision_model

        def forward(self, pixels, valid, shapes):
            return self.tower(pixels, valid, shapes).pooler_output

    class Texts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.tower = model.text_model

        def forward(self, ids):
            return self.tower(ids).pooler_output

    return Images().eval(), Texts().eval()


def torch_sides(name: str, path: Path, image: Patches, ids: np.ndarray) -> list[Side]:
    """Both towers of transformers."""
    import torch

    dtype = name.partition("-")[2]

    def side(tower, feed) -> Side:
        inputs = [torch.tensor(x) for x in feed.values()]
        inputs = [x.to(getattr(torch, dtype)) if x.is_floating_point() else x for x in inputs]

        def run():
            with torch.inference_mode():
                return tower(*inputs)

        return Side(run, sum(x.nbytes for x in tower.parameters()) / 1e6)

    return [side(*pair) for pair in zip(torch_towers(path, dtype), feeds(image, ids), strict=True)]


def feeds(image: Patches, ids: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Inputs of both towers of transformers, by name."""
    batch = len(ids)
    return {
        "pixels": np.asarray(image.pixels),
        "valid": np.ones((batch, TOKENS), np.int32),
        "shapes": np.full((batch, 2), 16, np.int64),
    }, {"ids": ids.astype(np.int64)}


def onnx_sides(name: str, path: Path, image: Patches, ids: np.ndarray, threads: int) -> list[Side]:
    """Both towers in onnxruntime, in float32 or dynamically in 8 bits; the files are kept."""
    import onnxruntime

    files = [path.parent / f"{label}-{len(ids)}.onnx" for label in ("images", "texts")]
    inputs, sides = feeds(image, ids), []
    if not all(file.exists() for file in files):
        export(torch_towers(path, "float32"), inputs, files)
    for file, feed in zip(files, inputs, strict=True):
        if name.endswith("int8"):
            file = quantise(file)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.force_spinning_stop", "1")  # others run next
        session = onnxruntime.InferenceSession(file, options)
        feed = {x.name: feed[x.name] for x in session.get_inputs()}
        run = functools.partial(session.run, None, feed)
        sides.append(Side(lambda run=run: run()[0], file.stat().st_size / 1e6))
    return sides


def export(towers: Any, inputs: Any, files: list[Path]) -> None:
    """Writes both towers of transformers as ONNX, by torch."""
    import torch

    for tower, feed, file in zip(towers, inputs, files, strict=True):
        arrays = tuple(torch.tensor(x) for x in feed.values())
        torch.onnx.export(tower, arrays, file, input_names=[*feed], dynamo=False, opset_version=18)


def quantise(file: Path) -> Path:
    """Rounds the weights of an ONNX file to 8 bits, a scale for each output.

    Constants are folded first: without it nearly no product has a constant to round.
    """
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    folded, small = file.with_suffix(".folded.onnx"), file.with_suffix(".int8.onnx")
    if not small.exists():
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(folded)
        onnxruntime.InferenceSession(file, options)
        quantize_dynamic(folded, small, weight_type=QuantType.QInt8, per_channel=True)
    return small


def towers(path: Path, batch: int, names: list[str], threads: int, rounds: int) -> list[dict]:
    """Both towers at one batch size."""
    rng = np.random.default_rng(0)
    pixels = rng.uniform(-1, 1, (batch, TOKENS, 768)).astype(np.float32)
    yx = np.broadcast_to(GRID, (batch, TOKENS, 2))
    image = Patches(pixels, yx, np.ones((batch, TOKENS), bool))
    ids = rng.integers(0, 1000, (batch, 64)).astype(np.int32)
    images, texts = {}, {}
    for name in names:
        if name in HERE:
            both = our_sides(name, path, image, ids)
        elif name.startswith("transformers"):
            both = torch_sides(name, path, image, ids)
        else:
            both = onnx_sides(name, path, image, ids, threads)
        images[name], texts[name] = both
    return [
        compare(f"images, batch {batch}", batch, images, rounds),
        compare(f"texts, batch {batch}", batch, texts, rounds),
    ]


def photo(width: int, height: int) -> bytes:
    """A JPEG with detail at all scales."""
    rng = np.random.default_rng(0)
    layers = [
        Image.fromarray(rng.integers(0, 256, (height // s, width // s, 3), np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        for s in (4, 16, 64)
    ]
    image = Image.blend(Image.blend(layers[0], layers[1], 0.6), layers[2], 0.6)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=90)
    return data.getvalue()


def repeat(call: Callable[[bytes, int], object], data: bytes, repeats: int) -> None:
    """Calls a preprocessor several times."""
    for _ in range(repeats):
        call(data, TOKENS)


def preprocessing(rounds: int, repeats: int = 8) -> list[dict]:
    """NaFlex preprocessing on one core, from JPEG bytes to a padded batch of one."""
    import torch
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    torch.set_num_threads(1)
    theirs = Siglip2ImageProcessorPil(patch_size=16, max_num_patches=TOKENS)

    def their_call(data: bytes, _: int) -> None:
        theirs(Image.open(io.BytesIO(data)), return_tensors="np")

    rows = []
    for width, height in ((640, 480), (1024, 768)):
        data = photo(width, height)
        for mode in ("reference", "hf"):
            ours = ImagePreprocessor(16, None, mode=mode)
            rows.append(
                compare(
                    f"preprocess {mode}, {width}x{height}",
                    repeats,
                    {
                        "here": Side(lambda ours=ours, data=data: repeat(ours, data, repeats)),
                        "transformers": Side(lambda data=data: repeat(their_call, data, repeats)),
                    },
                    4 * rounds,
                )
            )
    return rows


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--skip", choices=("towers", "preprocessing"))
    parser.add_argument("--vocab-size", type=int, default=32_000, help="rows of the token table")
    parser.add_argument(
        "--model",
        type=Path,
        help="directory of a model in transformers' format, beside which ONNX files are kept "
        "(default: random weights)",
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # of transformers, on import
    rows = []
    if args.skip != "preprocessing" or any(x.startswith("transformers") for x in args.sides):
        import torch

        torch.set_num_threads(args.threads)
    jnp.zeros(()).block_until_ready()
    if args.skip != "towers":
        with tempfile.TemporaryDirectory() as directory:
            path = args.model or make_model(directory, args.vocab_size)
            for batch in args.batch:
                rows += towers(path, batch, args.sides, args.threads, args.rounds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of this process: {peak:.0f} MiB", flush=True)
    if args.skip != "preprocessing":
        rows += preprocessing(args.rounds)
    if args.json:
        args.json.write_text(json.dumps({"rows": rows, "peak_mib": peak}, indent=2))


if __name__ == "__main__":
    main()
