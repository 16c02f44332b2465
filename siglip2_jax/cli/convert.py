"""`siglip2 convert`: one checkpoint format to another."""

from __future__ import annotations

import argparse
import json

from siglip2_jax.cli.options import SOURCE_HELP


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "convert",
        help="write a checkpoint in another format",
        epilog="example: siglip2 convert siglip2_b16_naflex.npz b16_naflex --to hf "
        "--tokenizer tokenizer.model",
    )
    parser.add_argument("source", metavar="SOURCE", help=SOURCE_HELP)
    parser.add_argument("destination", metavar="DEST", help="file (npz) or directory to write")
    parser.add_argument("--to", choices=("orbax", "hf", "npz"), required=True)
    parser.add_argument(
        "--tokenizer", help="tokenizer to put beside the model; default: the one beside SOURCE"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace DEST if it exists")
    parser.add_argument("--json", action="store_true", help="print a summary as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Converts, showing progress by tensor."""
    from siglip2_jax import convert
    from siglip2_jax.preprocess.tokenizer import Tokenizer
    from siglip2_jax.progress import progress

    checkpoint = convert.read(args.source)
    text = checkpoint.config.text
    path = args.tokenizer or checkpoint.tokenizer
    tokenizer = None
    if path is not None and args.to != "npz":
        tokenizer = Tokenizer.load(
            path,
            text_norm=checkpoint.preprocessing.text_norm,
            length=text.length,
            pad_id=text.pad_id,
        )
        tokenizer.check(text.vocab_size)
    with progress(f"writing {args.to}", len(checkpoint.params)) as advance:
        convert.write(
            checkpoint.counted(advance),
            args.destination,
            args.to,
            tokenizer=tokenizer,
            overwrite=args.overwrite,
        )
    summary = {
        "source": args.source,
        "destination": args.destination,
        "format": args.to,
        "tensors": len(checkpoint.params),
        "tokenizer": None if path is None or args.to == "npz" else str(path),
    }
    print(json.dumps(summary, indent=2) if args.json else f"wrote {args.destination}")
