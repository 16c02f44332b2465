"""`siglip2 info`: what a checkpoint is, without loading its weights."""

from __future__ import annotations

import argparse
import math
from typing import Any

from siglip2_jax.cli.options import SOURCE_HELP
from siglip2_jax.cli.printing import print_json


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "info",
        help="what a checkpoint is: variant, sizes, tokenizer, preprocessing",
        epilog="example: siglip2 info siglip2_b16_naflex.npz",
    )
    parser.add_argument("source", metavar="SOURCE", help=SOURCE_HELP)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Prints the description."""
    facts = describe(args.source)
    if args.json:
        print_json(facts)
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {entry}" for key, entry in value.items())
        print(f"{name:14} {value}")


def describe(source: str) -> dict[str, Any]:
    """Everything known of a checkpoint, as plain JSON values."""
    from siglip2_jax import checkpoints
    from siglip2_jax.models.config import find_variant

    checkpoint = checkpoints.read(source)
    config, variant = checkpoint.config, find_variant(checkpoint.config)
    count = {
        tower: sum(math.prod(x.shape) for path, x in checkpoint.params.items() if select(path))
        for tower, select in {
            "vision": lambda path: path.startswith("vision/"),
            "text": lambda path: path.startswith("text/"),
            "total": lambda path: True,
        }.items()
    }
    vision = config.vision
    return {
        "source": str(source),
        "format": checkpoint.format,
        "variant": variant.name if variant else "none of the released sizes",
        "resolution": "native (NaFlex)" if config.native_resolution else f"{vision.image_size} px",
        "vision": config.to_json()["vision"],
        "text": config.to_json()["text"],
        "parameters": count,
        "temperature": round(math.exp(float(checkpoint.params["t"].read())), 4),
        "bias": round(float(checkpoint.params["b"].read()), 4),
        "tokenizer": str(checkpoint.tokenizer) if checkpoint.tokenizer else "none beside the model",
        "preprocessing": checkpoint.preprocessing.mode,
        "text_norm": checkpoint.preprocessing.text_norm,
    }
