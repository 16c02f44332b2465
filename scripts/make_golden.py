"""Make tests/golden: outputs of the official implementation for images that ship with the package.

    python scripts/make_golden.py BIG_VISION

BIG_VISION is a git checkout of google-research/big_vision, whose commit is recorded. Besides what
it imports (tensorflow-cpu, tensorflow-datasets, jax, flax, einops, ml_collections, sentencepiece,
psutil) this needs Pillow, and nothing of this package: only its images and its demo tokenizer.

Preprocessing, checkpoint loading and both towers are the official code, called as in its
`SigLIP2_demo.ipynb`; the checkpoints are tiny and random, in the layouts of the released ones. The
same versions on the same machine write the same bytes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "siglip2_jax" / "demo"
LIBRARIES = ("jax", "flax", "tensorflow-cpu", "sentencepiece", "numpy", "pillow")

# All under CC BY 2.0. A box (left, top, right, bottom) cuts out a strip.
IMAGES = (
    ("000000099053.jpg", None),
    ("000000165518.jpg", None),
    ("000000431848.jpg", None),
    ("000000012280.jpg", None),
    ("000000519208.jpg", None),
    ("000000107438.jpg", (0, 90, 320, 130)),
    ("000000183709.jpg", (110, 0, 140, 320)),
)
BUDGETS = (16, 64, 256)
PATCH = {"naflex": 16, "fixed": 14}
RESOLUTION = 112
SIZES = 40  # per patch size and budget
TEXTS = (
    "A bowl of noodles, meat and broccoli with a fork.",
    "A MAN DRIVES A MOTORCYCLE DOWN A ROAD IN THE FOG",
    "don't   look\n\nat C++ code & #1, snow_leopard!  ",
    "МОСКВА, ÉCOLE, İstanbul; 你好，世界！ 🏃‍♂️",
    "",
    "a" + " a" * 61,  # 62 ids, then 63, which the end mark fills up to 64, then one too many
    "a" + " a" * 62,
    "a" + " a" * 63,
    "the dog and the cat " * 15,
)
TEXT_LENGTH = 64
VISION = {"width": 48, "depth": 2, "mlp_dim": 112, "num_heads": 3}
TEXT = {"width": 40, "depth": 3, "mlp_dim": 96, "num_heads": 5, "vocab_size": 1024}


def load_images() -> list[np.ndarray]:
    """Pixels as the official notebook hands them to its preprocessing."""
    images = []
    for file, box in IMAGES:
        with Image.open(DEMO / "photos" / file) as image:
            images.append(np.array(image.crop(box) if box else image))
    return images


def pipeline(*ops: str):
    """The official preprocessing function of a chain of official ops."""
    builder = importlib.import_module("big_vision.pp.builder")
    for name in ("ops_general", "ops_image", "ops_text"):
        importlib.import_module(f"big_vision.pp.{name}")
    importlib.import_module("big_vision.pp.proj.image_text.ops_naflex")
    importlib.import_module("big_vision.pp.proj.paligemma.ops")
    return builder.get_preprocess_fn("|".join(ops), log_data=False)


def tokenize() -> np.ndarray:
    """Ids of the texts, by the demo tokenizer in the place of Gemma's."""
    model = f"gemma(model='{DEMO / 'tokenizer.model'}')"
    ops = pipeline(
        'lower(key="text")',
        f'tok(length={TEXT_LENGTH}, model="{model}", bos="no", eos="sticky", key="text")',
    )
    return np.stack([ops({"text": text})["text"].numpy() for text in TEXTS])


def naflex_inputs(images: Sequence[np.ndarray], budget: int) -> tuple[np.ndarray, ...]:
    """Patches, types, rows and columns, padded to the budget."""
    patch = PATCH["naflex"]
    keys = [f"image/{name}" for name in ("patches", "type", "yidx", "xidx")]
    shapes = [f"({budget}, None)"] + 3 * [f"({budget},)"]
    ops = pipeline(
        "value_range(-1, 1)",
        f'resize_to_sequence({patch}, {budget}, outkey="image")',
        f'patchify({patch}, key="image")',
        'flatten(["image"])',
        *(f'pad_to_shape(key="{k}", shape={s})' for k, s in zip(keys, shapes, strict=True)),
        f'tuplify({json.dumps(keys)}, "image")',
    )
    rows = [ops({"image": image})["image"] for image in images]
    return tuple(np.stack(column) for column in zip(*rows, strict=True))


def fixed_inputs(images: Sequence[np.ndarray], *ops: str) -> np.ndarray:
    """Images at the fixed resolution, then through more ops."""
    resize = pipeline(f"resize({RESOLUTION})", *ops)
    return np.stack([resize({"image": image})["image"].numpy() for image in images])


def sizes() -> np.ndarray:
    """Rows of height, width, patch size, budget, and the height and width they are resized to."""
    import tensorflow as tf

    search = importlib.import_module("big_vision.pp.proj.image_text.ops_naflex")
    rng = np.random.default_rng(0)
    rows = []
    for patch in (14, 16, 32):
        for budget in (1, 2, 7, 64, 128, 256, 576, 784, 1024):

            def resized(hw, patch=patch, budget=budget):
                return search._get_image_size_for_seq(hw, patch, budget)[1]

            compiled = tf.function(resized, [tf.TensorSpec([2], tf.int32)])
            for hw in (2 ** rng.uniform(0, 13, (SIZES, 2))).astype(np.int32):
                rows.append([*hw, patch, budget, *compiled(hw).numpy()])
    return np.array(rows, np.int32)


def save_checkpoint(model, inputs, path: Path, seed: int) -> None:
    """Random parameters in which nothing is zero or one, with values that float16 can hold."""
    import jax

    tree_flatten_with_names = importlib.import_module("big_vision.utils").tree_flatten_with_names
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(seed)
    params = {}
    for name, leaf in tree_flatten_with_names(shapes)[0]:
        std = 0.15 if name.endswith("kernel") else 0.1 if "LayerNorm" in name else 0.3
        std = 0.04 if name == "img/embedding/kernel" else std
        x = std * rng.standard_normal(leaf.shape) + name.endswith("scale")
        x = np.full(leaf.shape, {"t": 2.5, "b": -9.5}[name]) if name in ("t", "b") else x
        params[f"params/{name}"] = x.astype(np.float16).astype(np.float32)
    np.savez_compressed(path, **params)


def load_model(kind: str, inputs, path: Path, seed: int):
    """A function from image and text inputs to the official model's outputs."""
    import ml_collections

    two_towers = importlib.import_module("big_vision.models.proj.image_text.two_towers")
    if kind == "naflex":
        name = "proj.image_text.naflex_vit"
        image = {"pool_type": "map", "nposemb": 16, "posemb": "learn_2d", **VISION}
    else:
        name = "vit"
        image = {"pool_type": "map", "scan": True, "patch_size": (PATCH[kind],) * 2, **VISION}
    config = ml_collections.ConfigDict(
        {
            "image_model": name,
            "image": image,
            "text_model": "proj.image_text.text_transformer",
            "text": {"scan": True, **TEXT},
            "out_dim": (None, VISION["width"]),
            "bias_init": -10,
        }
    )
    model = two_towers.Model(**config)
    save_checkpoint(model, inputs, path, seed)
    params = two_towers.load(None, str(path), config)

    def apply(image, text):
        images, texts, out = model.apply({"params": params}, image, text)
        tensors = {
            "image_embedding": images,
            "text_embedding": texts,
            "pooled": out["img/pre_logits"],
            "patch_tokens": out["img/encoded"],
            "logits": images @ texts.T * out["t"] + out["b"],
        }
        return {name: np.asarray(x) for name, x in tensors.items()}

    return apply


def make_naflex(out: Path, images: Sequence[np.ndarray], ids: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs of the native-resolution model at each budget."""
    model = load_model("naflex", (naflex_inputs(images, 16), ids), out / "naflex_tiny.npz", 1)
    expected = {"text_tokens": ids}
    for budget in BUDGETS:
        patches, kind, y, x = naflex_inputs(images, budget)
        levels = np.rint((patches + 1) * 127.5).astype(np.uint8)
        rounded = np.where(kind[..., None] == 1, levels / np.float32(127.5) - 1, 0)
        outputs = model((patches, kind, y, x), ids)
        tokens = outputs.pop("patch_tokens")[0, : kind[0].sum()]
        from_levels = model((rounded.astype(np.float32), kind, y, x), ids)["image_embedding"]
        outputs |= {
            "grid_hw": np.stack([y.max(1) + 1, x.max(1) + 1], 1),
            "patches_u8": np.where(kind[..., None] == 1, levels, 0),
            "patches_first": patches[0],
            "patch_tokens_first": tokens,
            "image_embedding_from_u8": from_levels,
        }
        expected |= {f"naflex{budget}/{name}": x for name, x in outputs.items()}
    return expected


def make_fixed(out: Path, images: Sequence[np.ndarray], ids: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs of the fixed-resolution model."""
    pixels = fixed_inputs(images, "value_range(-1, 1)")
    model = load_model("fixed", (pixels, ids), out / "fixed_tiny.npz", 2)
    return {"text_tokens": ids, "pixels_u8": fixed_inputs(images), **model(pixels, ids)}


def normalized() -> dict[str, Sequence[str]]:
    """The texts, in lower case and in the canonical form of SigLIP 1's prompts."""
    prompts = importlib.import_module("big_vision.evaluators.proj.image_text.prompt_engineering")
    lower = pipeline('lower(key="text")')
    return {
        "texts": TEXTS,
        "lower": [lower({"text": text})["text"].numpy().decode() for text in TEXTS],
        "canonical": [prompts.canonicalize_text(text) for text in TEXTS],
    }


def write_json(path: Path, **fields) -> None:
    """One field a line."""
    lines = (f" {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in fields.items())
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def main() -> None:
    """Write every file of the golden but its README."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("big_vision", type=Path, help="a git checkout of the official code")
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "golden")
    args = parser.parse_args()
    os.environ |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "TF_ENABLE_ONEDNN_OPTS": "0"}
    sys.path.insert(0, str(args.big_vision))

    git = ["git", "-C", str(args.big_vision)]
    if subprocess.check_output([*git, "status", "--porcelain"]):
        parser.error(f"{args.big_vision} has uncommitted changes; expected a clean checkout")
    commit = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()

    args.out.mkdir(parents=True, exist_ok=True)
    images, ids = load_images(), tokenize()
    for kind, make in (("naflex", make_naflex), ("fixed", make_fixed)):
        arrays: Any = make(args.out, images, ids)  # none of which is called as an option is
        np.savez_compressed(args.out / f"{kind}_expected.npz", **arrays)
        files, boxes = zip(*IMAGES, strict=True)
        write_json(args.out / f"{kind}.json", patch=PATCH[kind], files=files, boxes=boxes)
    np.savez_compressed(args.out / "sizes.npz", sizes=sizes())
    write_json(args.out / "texts.json", **normalized())
    versions = {name: metadata.version(name) for name in LIBRARIES}
    write_json(args.out / "origin.json", big_vision=commit, **versions)


if __name__ == "__main__":
    main()
