"""Hugging Face checkpoints: safetensors beside a `config.json`.

Names and shapes follow transformers' `modeling_siglip.py` and `modeling_siglip2.py`. Every
fixed-resolution model, SigLIP 2's too, has the type `siglip` and a convolution kernel; native
resolution has `siglip2` and a dense kernel. Which it is shows in that kernel's shape.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from siglip2_jax.checkpoints import safetensors_file
from siglip2_jax.checkpoints.checkpoint import Preprocessing, param_shapes
from siglip2_jax.checkpoints.huggingface_config import (
    CONFIG,
    PREPROCESSOR,
    disagreements,
    preprocessor_json,
    read_config,
    read_json,
    to_json,
)
from siglip2_jax.checkpoints.sizes import model_config, require, require_towers, square_side
from siglip2_jax.checkpoints.table import (
    CONV_OIHW,
    DENSE,
    DENSE_FROM_HEADS,
    DENSE_TO_HEADS,
    FLAT,
    ROWS,
    SAME,
    ConversionError,
    Lazy,
    Progress,
    Rule,
    Transform,
    counted,
    their_shapes,
    to_ours,
    to_theirs,
)
from siglip2_jax.models.config import ModelConfig

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOWERS = {"vision": "vision_model", "text": "text_model"}


def read(path: epath.Path) -> tuple[ModelConfig, dict[str, Lazy]]:
    """Sizes and parameters of a directory, or of a `.safetensors` file in one.

    Raises:
      ConversionError: a file is missing or damaged, or it holds another kind of model.
    """
    sizes = read_config(path if path.is_dir() else path.parent)
    tensors = _bare_names(_read_weights(path))
    config = infer_config(tensors, sizes)
    if problems := disagreements(config, sizes):
        raise ConversionError(problems)
    table = rules(config.native_resolution)
    return config, to_ours(table, param_shapes(config), tensors)


def write(
    directory: epath.Path,
    config: ModelConfig,
    params: Mapping[str, Lazy],
    preprocessing: Preprocessing,
    *,
    progress: Progress | None = None,
) -> None:
    """Writes files that transformers opens, one tensor at a time, into an existing directory.

    Args:
      directory: where the files go.
      config: sizes of the model.
      params: every parameter by path.
      preprocessing: names the filter of the image processor.
      progress: called after every tensor.

    Raises:
      ConversionError: the format has no such model.
    """
    if config.text.pool != "last":
        problem = (
            f"the text tower pools by {config.text.pool!r}, which transformers' models do not "
            "(they read the last position); write orbax or npz"
        )
        raise ConversionError([problem])
    (directory / CONFIG).write_text(json.dumps(to_json(config), indent=2))
    processor = preprocessor_json(config, preprocessing)
    (directory / PREPROCESSOR).write_text(json.dumps(processor, indent=2))
    table = rules(config.native_resolution)
    shapes = their_shapes(table, {path: tensor.shape for path, tensor in params.items()})
    tensors = counted(to_theirs(table, params), len(shapes), progress)
    safetensors_file.write(directory / WEIGHTS, shapes, tensors)


def rules(native_resolution: bool) -> list[Rule]:
    """The table of the format."""
    vision, text = TOWERS["vision"], TOWERS["text"]
    kernel = DENSE if native_resolution else CONV_OIHW
    return [
        *_dense("vision/embed", f"{vision}.embeddings.patch_embedding", kernel),
        Rule(("vision/pos/table",), f"{vision}.embeddings.position_embedding.weight", ROWS),
        *_encoder("vision", "post_layernorm"),
        Rule(("vision/pool/probe",), f"{vision}.head.probe"),
        *_fused_attention("vision/pool/attn", f"{vision}.head.attention"),
        *_norm("vision/pool/norm", f"{vision}.head.layernorm"),
        *_mlp("vision/pool/mlp", f"{vision}.head.mlp"),
        Rule(("text/embed/table",), f"{text}.embeddings.token_embedding.weight"),
        Rule(("text/pos/table",), f"{text}.embeddings.position_embedding.weight"),
        *_encoder("text", "final_layer_norm"),
        *_dense("text/head", f"{text}.head"),
        Rule(("t",), "logit_scale", FLAT),
        Rule(("b",), "logit_bias", FLAT),
    ]


def _encoder(tower: str, norm: str) -> Iterator[Rule]:
    ours, theirs = f"{tower}/encoder/blocks", f"{TOWERS[tower]}.encoder.layers.{{i}}"
    for name in ("ln1", "ln2"):
        yield from _norm(f"{ours}/{name}", f"{theirs}.layer_norm{name[-1]}")
    for name in ("query", "key", "value"):
        linear = f"{theirs}.self_attn.{name[0]}_proj"
        yield from _dense(f"{ours}/attn/{name}", linear, DENSE_TO_HEADS, FLAT)
    yield from _dense(f"{ours}/attn/out", f"{theirs}.self_attn.out_proj", DENSE_FROM_HEADS)
    yield from _mlp(f"{ours}/mlp", f"{theirs}.mlp")
    yield from _norm(f"{tower}/encoder/norm", f"{TOWERS[tower]}.{norm}")


def _fused_attention(ours: str, theirs: str) -> Iterator[Rule]:
    for leaf, name, transform in (
        ("kernel", "in_proj_weight", DENSE_TO_HEADS),
        ("bias", "in_proj_bias", FLAT),
    ):
        parts = tuple(f"{ours}/{part}/{leaf}" for part in ("query", "key", "value"))
        yield Rule(parts, f"{theirs}.{name}", transform)
    yield from _dense(f"{ours}/out", f"{theirs}.out_proj", DENSE_FROM_HEADS)


def _mlp(ours: str, theirs: str) -> Iterator[Rule]:
    for name in ("fc1", "fc2"):
        yield from _dense(f"{ours}/{name}", f"{theirs}.{name}")


def _dense(
    ours: str, theirs: str, kernel: Transform = DENSE, bias: Transform = SAME
) -> Iterator[Rule]:
    yield Rule((f"{ours}/kernel",), f"{theirs}.weight", kernel)
    yield Rule((f"{ours}/bias",), f"{theirs}.bias", bias)


def _norm(ours: str, theirs: str) -> Iterator[Rule]:
    yield Rule((f"{ours}/scale",), f"{theirs}.weight")
    yield Rule((f"{ours}/bias",), f"{theirs}.bias")


def _read_weights(path: epath.Path) -> dict[str, Lazy]:
    """The tensors of all weight files."""
    tensors: dict[str, Lazy] = {}
    problems = []
    for file in _weight_files(path):
        shard = safetensors_file.read(file)
        problems += [f"{name} is in several files" for name in tensors.keys() & shard.keys()]
        tensors |= shard
    if problems:
        raise ConversionError(problems, str(path))
    return tensors


def _weight_files(path: epath.Path) -> list[epath.Path]:
    if path.is_file():
        return [path]
    if (path / WEIGHTS).exists():
        return [path / WEIGHTS]
    if (path / INDEX).exists():
        shards = sorted(set(read_json(path / INDEX).get("weight_map", {}).values()))
        missing = [f"{name} is missing" for name in shards if not (path / name).exists()]
        if missing or not shards:
            raise ConversionError(missing or [f"{INDEX} names no files"], str(path))
        return [path / name for name in shards]
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return files
    if sorted(path.glob("pytorch_model*.bin")):
        problem = (
            "the weights are only in pytorch_model.bin, a pickle, which is never loaded: open it "
            "with transformers and save it again with save_pretrained, which writes safetensors"
        )
    else:
        names = ", ".join(file.name for file in files) or "no .safetensors file"
        problem = f"expected {WEIGHTS} or {INDEX}, found {names}"
    raise ConversionError([problem], str(path))


def _bare_names(tensors: Mapping[str, Lazy]) -> dict[str, Lazy]:
    """Tensors without buffers, by names without the prefix of a wrapping module."""
    scales = [name for name in tensors if re.fullmatch(r"(.*\.)?logit_scale", name)]
    prefix = scales[0].removesuffix("logit_scale") if len(scales) == 1 else ""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if not name.endswith(".position_ids")
    }


def infer_config(tensors: Mapping[str, Lazy], sizes: Mapping[str, dict[str, Any]]) -> ModelConfig:
    """Sizes of a model: those that tensors show, from them; heads and image size from the config.

    Args:
      tensors: by name, without prefix.
      sizes: `vision_config` and `text_config`, complete.

    Raises:
      ConversionError: tensors that show the sizes are missing or have a strange shape.
    """
    require_towers(tensors, {tower: f"{prefix}." for tower, prefix in TOWERS.items()})
    vision, text = (f"{prefix}.embeddings" for prefix in TOWERS.values())
    require(
        tensors,
        {
            f"{vision}.patch_embedding.weight": (2, 4),
            f"{vision}.position_embedding.weight": (2,),
            f"{text}.token_embedding.weight": (2,),
            f"{text}.position_embedding.weight": (2,),
            f"{TOWERS['text']}.head.bias": (1,),
        },
    )
    kernel = tensors[f"{vision}.patch_embedding.weight"].shape
    native = len(kernel) == 2
    return model_config(
        vision={
            **_tower(tensors, TOWERS["vision"]),
            "num_heads": sizes["vision_config"]["num_attention_heads"],
            "patch_size": math.isqrt(kernel[1] // 3) if native else kernel[-1],
            "grid": square_side(tensors[f"{vision}.position_embedding.weight"].shape[0]),
            "image_size": None if native else sizes["vision_config"]["image_size"],
        },
        text={
            **_tower(tensors, TOWERS["text"]),
            "num_heads": sizes["text_config"]["num_attention_heads"],
            "vocab_size": tensors[f"{text}.token_embedding.weight"].shape[0],
            "embed_dim": tensors[f"{TOWERS['text']}.head.bias"].shape[0],
            "length": tensors[f"{text}.position_embedding.weight"].shape[0],
        },
    )


def _tower(tensors: Mapping[str, Lazy], prefix: str) -> dict[str, int]:
    """Width, depth and MLP size of a tower."""
    dense = f"{prefix}.encoder.layers.0.mlp.fc1.weight"
    require(tensors, {dense: (2,)})
    mlp_dim, width = tensors[dense].shape
    layer = re.compile(rf"{prefix}\.encoder\.layers\.\d+\.layer_norm1\.weight")
    return {
        "width": width,
        "depth": sum(map(bool, map(layer.fullmatch, tensors))),
        "mlp_dim": mlp_dim,
    }
