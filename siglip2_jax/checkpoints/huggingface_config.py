"""The JSON files beside Hugging Face weights: `config.json` and `preprocessor_config.json`.

Keys, and the defaults of absent ones, are those of transformers' `configuration_siglip.py`,
`configuration_siglip2.py` and the image processors.
"""

from __future__ import annotations

from typing import Any, Literal

from etils import epath

from siglip2_jax.checkpoints.checkpoint import Preprocessing, default_text_norm
from siglip2_jax.checkpoints.table import ConversionError
from siglip2_jax.data.text import parse_json
from siglip2_jax.models.config import ModelConfig, Tower
from siglip2_jax.preprocess.resize import Resample

ModelType = Literal["siglip", "siglip2"]

CONFIG = "config.json"
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
MODEL_TYPES = ("siglip", "siglip2")
CLASSES = {"siglip": "Siglip", "siglip2": "Siglip2"}
MAX_NUM_PATCHES = 256  # the default of transformers
RESAMPLE: dict[Resample, int] = {"bilinear": 2, "bicubic": 3}  # PIL's numbers

# What transformers takes for an absent key, and all that must agree with the tensors.
TOWER = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
DEFAULTS = {
    "vision_config": {**TOWER, "patch_size": 16, "image_size": 224, "num_patches": 256},
    "text_config": {**TOWER, "vocab_size": 32_000, "max_position_embeddings": 64},
}


def model_type(config: ModelConfig) -> ModelType:
    """Name of the model's type in transformers."""
    return "siglip2" if config.native_resolution else "siglip"


def to_json(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` of a model."""
    kind, vision, text = model_type(config), config.vision, config.text
    size = (
        {"num_patches": vision.grid**2}
        if config.native_resolution
        else {"image_size": vision.image_size}
    )
    # SigLIP 1 pads with its end mark and has no begin mark.
    pad, eos, bos = (1, 1, None) if text.pad_id == 1 else (text.pad_id, 1, 2)
    return {
        "architectures": [f"{CLASSES[kind]}Model"],
        "model_type": kind,
        "dtype": "float32",
        "initializer_factor": 1.0,
        "vision_config": {
            "model_type": f"{kind}_vision_model",
            **_tower(vision),
            "patch_size": vision.patch_size,
            **size,
            "num_channels": 3,
            "vision_use_head": True,
        },
        "text_config": {
            "model_type": f"{kind}_text_model",
            **_tower(text),
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.length,
            "projection_size": text.embed_dim,
            "pad_token_id": pad,
            "eos_token_id": eos,
            "bos_token_id": bos,
        },
    }


def _tower(tower: Tower) -> dict[str, Any]:
    return {
        "hidden_size": tower.width,
        "intermediate_size": tower.mlp_dim,
        "num_hidden_layers": tower.depth,
        "num_attention_heads": tower.num_heads,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
        "attention_dropout": 0.0,
    }


def read_config(directory: epath.Path) -> dict[str, dict[str, Any]]:
    """`vision_config` and `text_config` of a directory, absent keys filled in.

    Raises:
      ConversionError: there is no readable config.json, or it describes another kind of model.
    """
    path = directory / CONFIG
    if not path.exists():
        problem = "there is no config.json beside the weights: the number of heads is only in there"
        raise ConversionError([problem], str(directory))
    data = read_json(path)
    if (model_type := data.get("model_type")) not in MODEL_TYPES:
        raise ConversionError(
            [f"config.json describes a {model_type!r} model, expected 'siglip' or 'siglip2'"],
            str(directory),
        )
    config = {}
    for tower, defaults in DEFAULTS.items():
        if not isinstance(given := data.get(tower) or {}, dict):
            problem = f"config.json has {tower} {given!r}, expected a JSON object"
            raise ConversionError([problem], str(directory))
        config[tower] = defaults | given
    vision = config["vision_config"]
    for key in ("image_size", "patch_size"):
        sides = vision[key] if isinstance(vision[key], list) else [vision[key]]
        if not all(isinstance(x, int) for x in sides) or len(set(sides)) != 1:
            problem = f"config.json has {key} {vision[key]!r}, expected a square"
            raise ConversionError([problem], str(directory))
        vision[key] = sides[0]
    return config


def disagreements(config: ModelConfig, data: dict[str, dict[str, Any]]) -> list[str]:
    """Lists where a `config.json`, as `read_config` gives it, contradicts the tensors."""
    expected = to_json(config)
    problems = [
        f"config.json has {key} {data[tower][key]!r} in {tower}, expected {expected[tower][key]!r}"
        for tower, keys in DEFAULTS.items()
        for key in keys
        if key in expected[tower] and data[tower][key] != expected[tower][key]
    ]
    vision = config.vision
    if vision.num_patches not in (None, vision.grid**2):
        problems.append(
            f"config.json has image_size {vision.image_size}, which makes {vision.num_patches} "
            f"patches of {vision.patch_size}, but there are {vision.grid**2} positions"
        )
    return problems


def preprocessor_json(config: ModelConfig, preprocessing: Preprocessing) -> dict[str, Any]:
    """The `preprocessor_config.json` of a model; with it AutoProcessor finds the right classes."""
    vision, name = config.vision, CLASSES[model_type(config)]
    size = (
        {"patch_size": vision.patch_size, "max_num_patches": MAX_NUM_PATCHES}
        if config.native_resolution
        else {"size": {"height": vision.image_size, "width": vision.image_size}}
    )
    return {
        "image_processor_type": f"{name}ImageProcessor",
        "processor_class": f"{name}Processor",
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": RESAMPLE[preprocessing.resample],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        **size,
    }


def read_preprocessing(directory: epath.Path, config: ModelConfig) -> Preprocessing:
    """The data conventions of a directory.

    Raises:
      ConversionError: it asks for a filter other than bilinear and bicubic.
    """
    data: dict[str, Any] = {"resample": RESAMPLE["bilinear"]}
    if (directory / PREPROCESSOR).exists():
        data = read_json(directory / PREPROCESSOR)
    elif (directory / PROCESSOR).exists():  # where transformers 5 saves it
        data = read_json(directory / PROCESSOR).get("image_processor") or data
    default = RESAMPLE["bilinear" if config.native_resolution else "bicubic"]
    number = data.get("resample", default)
    for name, code in RESAMPLE.items():
        if number == code:
            return Preprocessing(resample=name, text_norm=default_text_norm(config))
    problem = f"{PREPROCESSOR} has resample {number!r}, expected 2 (bilinear) or 3 (bicubic)"
    raise ConversionError([problem], str(directory))


def read_json(path: epath.Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
      ConversionError: the file is something else.
    """
    try:
        data = parse_json(path.read_bytes())
    except ValueError as error:
        raise ConversionError([f"it is {error}"], str(path)) from error
    if not isinstance(data, dict):
        raise ConversionError(["it is not a JSON object"], str(path))
    return data
