"""`siglip2 export`: a model as files that other programs run."""

from __future__ import annotations

import argparse

from siglip2_jax.cli.options import add_model_options, load_model, local_path
from siglip2_jax.cli.printing import print_json


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "export",
        help="write a model that runs without this package",
        epilog="example: siglip2 export google/siglip2-base-patch16-naflex b16_naflex "
        "--to stablehlo",
    )
    add_model_options(parser, batches=False)
    parser.add_argument("destination", metavar="DIR", type=local_path, help="directory to write")
    parser.add_argument(
        "--to",
        choices=("stablehlo",),
        required=True,
        help="format to write: stablehlo runs with JAX alone, on CPUs, NVIDIA GPUs and TPUs",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace DIR if it exists")
    parser.add_argument("--json", action="store_true", help="print a summary as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Exports, showing progress by tensor."""
    from siglip2_jax.export.stablehlo import export_stablehlo
    from siglip2_jax.progress import progress

    model = load_model(args)
    with progress(f"writing {args.to}") as update:
        description = export_stablehlo(
            model,
            args.destination,
            overwrite=args.overwrite,
            progress=lambda name, done, total: update(done, total),
        )
    if args.json:
        print_json({"source": args.source, "destination": args.destination, **description})
    else:
        print(f"wrote {args.destination}")
