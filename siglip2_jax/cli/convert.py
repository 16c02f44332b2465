"""`siglip2 convert`: one checkpoint format to another."""

from __future__ import annotations

import argparse

from siglip2_jax.cli.options import SOURCE_HELP, add_stage_option, any_path, local_path
from siglip2_jax.cli.printing import print_json


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "convert",
        help="write a checkpoint in another format",
        epilog="example: siglip2 convert siglip2_b16_naflex.npz b16_naflex --to hf "
        "--tokenizer tokenizer.model",
    )
    parser.add_argument("source", metavar="SOURCE", help=SOURCE_HELP)
    add_stage_option(parser)
    parser.add_argument(
        "destination", metavar="DEST", type=local_path, help="file (npz) or directory to write"
    )
    parser.add_argument(
        "--to",
        choices=("orbax", "hf", "npz", "lora"),
        required=True,
        help="format to write; lora is the adapters of a run alone, as peft reads them",
    )
    parser.add_argument(
        "--tokenizer",
        help="tokenizer to write beside the model (default: the tokenizer beside SOURCE)",
    )
    parser.add_argument(
        "--adapter", metavar="DIR", help="LoRA adapter in peft's layout to merge into the model"
    )
    parser.add_argument(
        "--results",
        metavar="FILE",
        type=any_path,
        help="results for the model card of --to hf, as `siglip2 eval --json` or its --out wrote "
        "them (default: report.json or results.json in the directory of SOURCE, if of SOURCE)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace DEST if it exists")
    parser.add_argument("--json", action="store_true", help="print a summary as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Converts, showing progress by tensor.

    Raises:
      ValueError: there are results, and the format has no model card.
    """
    from siglip2_jax import checkpoints
    from siglip2_jax.benchmarks.report.scores import find_scores, read_scores
    from siglip2_jax.progress import progress

    if args.results and args.to != "hf":
        raise ValueError(f"--results go into the model card of --to hf; --to {args.to} has none")
    if args.to == "lora":
        _write_adapter(args)
        return
    checkpoint = checkpoints.read(args.source, args.stage, adapter=args.adapter)
    if args.results:
        results, scores = args.results, read_scores(args.results)
    elif args.to == "hf" and not args.adapter:
        results, scores = find_scores(args.source, args.stage)
    else:
        results, scores = None, []
    tokenizer = checkpoint.open_tokenizer(args.tokenizer) if args.tokenizer else None
    with progress(f"writing {args.to}") as update:
        checkpoints.write(
            checkpoint,
            args.destination,
            args.to,
            tokenizer=tokenizer,
            scores=scores,
            overwrite=args.overwrite,
            progress=lambda name, done, total: update(done, total),
        )
    tokenizer_path = args.tokenizer or checkpoint.tokenizer
    summary = {
        "source": args.source,
        "destination": args.destination,
        "format": args.to,
        "tensors": len(checkpoint.params),
        "tokenizer": str(tokenizer_path) if tokenizer_path and args.to != "npz" else None,
        "results": results and str(results),
    }
    _report(args, summary)


def _write_adapter(args: argparse.Namespace) -> None:
    from siglip2_jax import checkpoints

    for option in ("tokenizer", "adapter"):
        if getattr(args, option):
            raise ValueError(f"an adapter is written alone; leave --{option} out")
    tensors = checkpoints.write_adapter(
        args.source, args.destination, stage=args.stage, overwrite=args.overwrite
    )
    summary = {"source": args.source, "destination": args.destination, "format": args.to}
    _report(args, summary | {"tensors": tensors, "tokenizer": None})


def _report(args: argparse.Namespace, summary: dict) -> None:
    if args.json:
        print_json(summary)
    else:
        results = summary.get("results")
        print(f"wrote {args.destination}" + (f", with results of {results}" if results else ""))
