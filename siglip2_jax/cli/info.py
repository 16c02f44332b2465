"""`siglip2 info`: describes a checkpoint without loading its weights."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

from siglip2_jax.cli.options import SOURCE_HELP, add_stage_option
from siglip2_jax.cli.printing import print_json

if TYPE_CHECKING:
    from siglip2_jax.checkpoints.run_layout import Saved
    from siglip2_jax.models.config import ModelConfig


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "info",
        help="describe a checkpoint: variant, sizes, tokenizer, preprocessing",
        description="Describes a checkpoint without reading its weights. For the workdir of a "
        "run, describes the newest checkpoint and lists all with their stages, steps and sizes.",
        epilog="example: siglip2 info siglip2_b16_naflex.npz",
    )
    parser.add_argument("source", metavar="SOURCE", help=SOURCE_HELP)
    add_stage_option(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Prints the description."""
    facts = describe(args.source, args.stage)
    if args.json:
        print_json(facts)
        return
    for name, value in facts.items():
        for line in value if isinstance(value, list) else [value]:
            if isinstance(line, dict):
                line = ", ".join(f"{key} {entry}" for key, entry in line.items())
            print(f"{name:14} {line}")


def describe(source: str, stage: str | None = None) -> dict[str, Any]:
    """Description of a checkpoint, as plain JSON values."""
    from siglip2_jax import checkpoints
    from siglip2_jax.checkpoints import run_layout
    from siglip2_jax.checkpoints.source import resolve

    path = resolve(source)
    checkpoint = checkpoints.read(path, stage)
    config = checkpoint.config
    count = {
        tower: sum(math.prod(x.shape) for path, x in checkpoint.params.items() if select(path))
        for tower, select in {
            "vision": lambda path: path.startswith("vision/"),
            "text": lambda path: path.startswith("text/"),
            "total": lambda path: True,
        }.items()
    }
    facts = {
        "source": str(source),
        "format": checkpoint.format,
        **_sizes(config),
        "vision": config.to_json()["vision"],
        "text": config.to_json()["text"],
        "parameters": count,
        "temperature": round(math.exp(float(checkpoint.params["t"].read())), 4),
        "bias": round(float(checkpoint.params["b"].read()), 4),
        "tokenizer": str(checkpoint.tokenizer) if checkpoint.tokenizer else "none beside the model",
        "preprocessing": checkpoint.preprocessing.mode,
        "text_norm": checkpoint.preprocessing.text_norm,
    }
    models = run_layout.find_all(path, stage)
    return facts | ({"checkpoints": [_listed(x) for x in reversed(models)]} if models else {})


def _sizes(config: ModelConfig) -> dict[str, str]:
    """The sizes of a model, in words."""
    from siglip2_jax.models.config import find_variant

    variant, side = find_variant(config), config.vision.image_size
    return {
        "variant": variant.name if variant else "none of the released sizes",
        "resolution": "native (NaFlex)" if config.native_resolution else f"{side} px",
    }


def _listed(saved: Saved) -> dict[str, Any]:
    """One checkpoint of a run: its stage, step and sizes."""
    from siglip2_jax.checkpoints import orbax, run_layout

    record = run_layout.read_record(saved)
    config, _ = orbax.parse(record, str(saved.step))
    return {"step": int(saved.step.name), "stage": record.get("stage"), **_sizes(config)}
