"""The official `.npz` checkpoints: names and shapes of google-research/big_vision.

Sources: `models/vit.py`, `models/proj/image_text/{two_towers,text_transformer}.py` and
`naflex_vit.py` there. A tower's blocks are either unrolled (`encoderblock_0/`, `encoderblock_1/`)
or stacked (`encoderblock/`, every leaf with a leading axis of layers). A fixed-resolution model has
a convolution kernel, a native-resolution one a dense kernel.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from etils import epath

from siglip2_jax.checkpoints import npz_file
from siglip2_jax.checkpoints.checkpoint import param_shapes
from siglip2_jax.checkpoints.sizes import model_config, require, require_towers, square_side
from siglip2_jax.checkpoints.table import (
    CONV_HWIO,
    FLAT,
    ONE_BATCH,
    SAME,
    Lazy,
    Progress,
    Rule,
    counted,
    their_shapes,
    to_ours,
    to_theirs,
)
from siglip2_jax.models.config import (
    RELEASES,
    SIGLIP1_RELEASES,
    ModelConfig,
    VisionConfig,
)

Layout = Literal["unrolled", "stacked"]

TOWERS = {"vision": "img/Transformer", "text": "txt/Encoder_0"}
ATTENTION, MLP = "MultiHeadDotProductAttention_0", "MlpBlock_0"
# Old checkpoints have these beside the tower rather than in its pooling head.
INLINED_HEAD = ("img/probe", f"img/{ATTENTION}/", "img/LayerNorm_0/", f"img/{MLP}/")


def read(path: epath.Path) -> tuple[ModelConfig, dict[str, Lazy]]:
    """Sizes and parameters of an official checkpoint, of any layout and age.

    Raises:
      ConversionError: the file is damaged, or its tensors are not those of a two-tower model.
    """
    tensors = modernise(npz_file.read(path))
    config = infer_config(tensors)
    vision, text = layout(tensors, "vision"), layout(tensors, "text")
    table = rules(config, vision, text)
    return config, to_ours(table, param_shapes(config), tensors)


def write(
    path: epath.Path,
    config: ModelConfig,
    params: Mapping[str, Lazy],
    *,
    vision: Layout = "unrolled",
    text: Layout = "unrolled",
    progress: Progress | None = None,
) -> None:
    """Writes an official checkpoint, one tensor at a time.

    Args:
      path: the file.
      config: sizes of the model.
      params: every parameter by path.
      vision: how the vision tower's blocks are stored.
      text: how the text tower's blocks are stored.
      progress: called after every tensor.
    """
    table = rules(config, vision, text)
    total = len(their_shapes(table, {path: tensor.shape for path, tensor in params.items()}))
    tensors = ((f"params/{name}", tensor) for name, tensor in to_theirs(table, params))
    npz_file.write(path, counted(tensors, total, progress))


def rules(config: ModelConfig, vision: Layout, text: Layout) -> list[Rule]:
    """The table of the format.

    Args:
      config: sizes of the model.
      vision: how the vision tower's blocks are stored.
      text: how the text tower's blocks are stored.
    """
    kernel, positions = (SAME, SAME) if config.native_resolution else (CONV_HWIO, ONE_BATCH)
    return [
        Rule(("vision/embed/kernel",), "img/embedding/kernel", kernel),
        Rule(("vision/embed/bias",), "img/embedding/bias"),
        Rule(("vision/pos/table",), "img/pos_embedding", positions),
        *_encoder("vision", vision),
        *_pool("vision/pool", "img/MAPHead_0"),
        Rule(("text/embed/table",), "txt/Embed_0/embedding"),
        Rule(("text/pos/table",), "txt/pos_embedding", ONE_BATCH),
        *_encoder("text", text),
        *(_pool("text/pool", "txt/MAPHead_0") if config.text.pool == "map" else ()),
        Rule(("text/head/kernel",), "txt/head/kernel"),
        Rule(("text/head/bias",), "txt/head/bias"),
        Rule(("t",), "t", FLAT),
        Rule(("b",), "b", FLAT),
    ]


def _encoder(tower: str, layout: Layout) -> Iterator[Rule]:
    block = "encoderblock" if layout == "stacked" else "encoderblock_{i}"
    ours, theirs = f"{tower}/encoder/blocks", f"{TOWERS[tower]}/{block}"
    yield from _norm(f"{ours}/ln1", f"{theirs}/LayerNorm_0")
    yield from _attention(f"{ours}/attn", theirs)
    yield from _norm(f"{ours}/ln2", f"{theirs}/LayerNorm_1")
    yield from _mlp(f"{ours}/mlp", theirs)
    yield from _norm(f"{tower}/encoder/norm", f"{TOWERS[tower]}/encoder_norm")


def _pool(ours: str, theirs: str) -> Iterator[Rule]:
    yield Rule((f"{ours}/probe",), f"{theirs}/probe")
    yield from _attention(f"{ours}/attn", theirs)
    yield from _norm(f"{ours}/norm", f"{theirs}/LayerNorm_0")
    yield from _mlp(f"{ours}/mlp", theirs)


def _norm(ours: str, theirs: str) -> Iterator[Rule]:
    for leaf in ("scale", "bias"):
        yield Rule((f"{ours}/{leaf}",), f"{theirs}/{leaf}")


def _attention(ours: str, theirs: str) -> Iterator[Rule]:
    for name in ("query", "key", "value", "out"):
        for leaf in ("kernel", "bias"):
            yield Rule((f"{ours}/{name}/{leaf}",), f"{theirs}/{ATTENTION}/{name}/{leaf}")


def _mlp(ours: str, theirs: str) -> Iterator[Rule]:
    for name, dense in (("fc1", "Dense_0"), ("fc2", "Dense_1")):
        for leaf in ("kernel", "bias"):
            yield Rule((f"{ours}/{name}/{leaf}",), f"{theirs}/{MLP}/{dense}/{leaf}")


def layout(tensors: Mapping[str, Lazy], tower: str) -> Layout:
    """Storage layout of the blocks of a tower ("vision" or "text")."""
    stacked = any(name.startswith(f"{TOWERS[tower]}/encoderblock/") for name in tensors)
    return "stacked" if stacked else "unrolled"


def modernise(tensors: Mapping[str, Lazy]) -> dict[str, Lazy]:
    """The tensors of any age of file under the names of the table.

    Takes the prefix `params/` away and does what big_vision does on loading: the image position
    table may be in a module of its own, the pooling head inlined, and a second text position table
    in the encoder is added to the first.
    """
    modern = {}
    for name, tensor in tensors.items():
        bare = name.removeprefix("params/")
        if bare.startswith(INLINED_HEAD):
            bare = bare.replace("img/", "img/MAPHead_0/", 1)
        bare = bare.replace("img/Transformer/posembed_input/", "img/", 1)
        # On a collision the name stays, and is reported as unknown.
        modern[name if bare in modern or (bare != name and bare in tensors) else bare] = tensor
    first, second = modern.get("txt/pos_embedding"), modern.get("txt/Encoder_0/pos_embedding")
    if first and second and first.shape == second.shape:
        del modern["txt/Encoder_0/pos_embedding"]
        modern["txt/pos_embedding"] = Lazy(
            first.shape,
            first.dtype,
            lambda: first.read().astype("float32") + second.read().astype("float32"),
        )
    return modern


def infer_config(tensors: Mapping[str, Lazy]) -> ModelConfig:
    """Sizes of the model that the tensors, under modern names, belong to.

    Raises:
      ConversionError: tensors that show the sizes are missing or have a strange shape.
    """
    require_towers(tensors, {"vision": "img/", "text": "txt/"})
    require(
        tensors,
        {
            "img/embedding/kernel": (2, 4),
            "img/pos_embedding": (3,),
            "txt/Embed_0/embedding": (2,),
            "txt/pos_embedding": (3,),
            "txt/head/bias": (1,),
        },
    )
    kernel, positions = tensors["img/embedding/kernel"].shape, tensors["img/pos_embedding"].shape
    native = len(kernel) == 2
    config = model_config(
        vision={
            **_tower(tensors, "vision"),
            "patch_size": math.isqrt(kernel[0] // 3) if native else kernel[0],
            "grid": positions[0] if native else square_side(positions[1]),
            "image_size": None,
        },
        text={
            **_tower(tensors, "text"),
            "vocab_size": tensors["txt/Embed_0/embedding"].shape[0],
            "embed_dim": tensors["txt/head/bias"].shape[0],
            "length": tensors["txt/pos_embedding"].shape[1],
            "pool": "map" if "txt/MAPHead_0/probe" in tensors else "last",
        },
    )
    return config if native else dataclasses.replace(config, vision=_sized(config.vision))


def _tower(tensors: Mapping[str, Lazy], tower: str) -> dict[str, Any]:
    """Width, depth, MLP size and heads of a tower."""
    stacked = layout(tensors, tower) == "stacked"
    block = f"{TOWERS[tower]}/encoderblock" + ("" if stacked else "_0")
    query, dense = f"{block}/{ATTENTION}/query/kernel", f"{block}/{MLP}/Dense_0/kernel"
    require(tensors, {query: (3 + stacked,), dense: (2 + stacked,)})
    width, num_heads, _ = tensors[query].shape[-3:]
    first = re.compile(rf"{TOWERS[tower]}/encoderblock_\d+/LayerNorm_0/scale")
    depth = tensors[query].shape[0] if stacked else sum(map(bool, map(first.fullmatch, tensors)))
    mlp_dim = tensors[dense].shape[-1]
    return {"width": width, "depth": depth, "mlp_dim": mlp_dim, "num_heads": num_heads}


def _sized(vision: VisionConfig) -> VisionConfig:
    """The image size of the release with this vision tower, or else the grid times the patch.

    The tensors do not show it: So400m/14 takes 384 pixels, of which 6 fill no patch.
    """
    for release in RELEASES + SIGLIP1_RELEASES:
        sized = dataclasses.replace(vision, image_size=release.config.vision.image_size)
        if sized == release.config.vision and sized.image_size is not None:
            return sized
    return dataclasses.replace(vision, image_size=vision.grid * vision.patch_size)
