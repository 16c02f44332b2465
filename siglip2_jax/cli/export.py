"""`siglip2 export`: a model as files that other programs run."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from siglip2_jax.cli.classify import read_labels
from siglip2_jax.cli.options import add_model_options, any_path, load_model, local_path, positive
from siglip2_jax.cli.printing import print_json

if TYPE_CHECKING:
    from siglip2_jax.export.onnx_int8 import Int8


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
        choices=("stablehlo", "onnx"),
        required=True,
        help="format to write: stablehlo runs with JAX alone, on CPUs, NVIDIA GPUs and TPUs; onnx "
        "in onnxruntime, on servers, on phones and in browsers",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace DIR if it exists")
    parser.add_argument("--json", action="store_true", help="print a summary as JSON")
    onnx = parser.add_argument_group("with --to onnx")
    onnx.add_argument("--labels", help="labels to embed into labels.json, separated by commas")
    onnx.add_argument("--labels-file", type=any_path, help="text file with one label per line")
    onnx.add_argument(
        "--int8",
        action="store_true",
        help="int8 weights and products; refused where embeddings change too much",
    )
    onnx.add_argument(
        "--check",
        metavar="DATA",
        type=local_path,
        help="directory with captions.jsonl and images, on which int8 may not lose recall; its "
        "test or validation split if it has splits",
    )
    onnx.add_argument(
        "--max-num-patches",
        type=positive,
        default=256,
        help="token budget of the images of --check, for NaFlex models (default: 256)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Exports; prints what was written."""
    description = _to_onnx(args) if args.to == "onnx" else _to_stablehlo(args)
    if args.json:
        print_json({"source": args.source, "destination": args.destination, **description})
        return
    for name, report in description.get("int8", {}).items():
        print(f"int8 {name}: {_line(report)}")
    print(f"wrote {args.destination}")


def _to_stablehlo(args: argparse.Namespace) -> dict[str, Any]:
    from siglip2_jax.export.stablehlo import export_stablehlo
    from siglip2_jax.progress import progress

    if args.int8 or args.check or args.labels or args.labels_file:
        raise ValueError(
            "--labels, --labels-file, --int8 and --check are options of --to onnx; leave them out"
        )
    model = load_model(args)
    with progress("writing stablehlo") as update:
        return export_stablehlo(
            model,
            args.destination,
            overwrite=args.overwrite,
            progress=lambda name, done, total: update(done, total),
        )


def _to_onnx(args: argparse.Namespace) -> dict[str, Any]:
    from siglip2_jax.export.onnx_graphs import check_packages, export_onnx

    check_packages()
    return export_onnx(
        load_model(args),
        args.destination,
        labels=read_labels(args) if args.labels or args.labels_file else (),
        quantize=_int8(args),
        overwrite=args.overwrite,
    )


def _int8(args: argparse.Namespace) -> Int8 | None:
    """Quantisation that the options ask for."""
    from pathlib import Path

    from siglip2_jax.benchmarks.tasks.held_out import held_out
    from siglip2_jax.data.sources import Folder
    from siglip2_jax.evals.retrieval import Retrieval
    from siglip2_jax.export.onnx_int8 import Int8

    if args.check and not args.int8:
        raise ValueError("--check measures what --int8 changes; add --int8, or leave it out")
    if not args.int8:
        return None
    if not args.check:
        return Int8()
    source = Folder(args.check, where=held_out(Path(args.check) / "captions.jsonl"))
    return Int8(Retrieval(source=source, max_num_patches=args.max_num_patches))


def _line(report: dict[str, Any]) -> str:
    """Numbers of a report in one line."""
    if "converted" not in report:
        return ", ".join(f"{k} {v['before']:.3f} -> {v['after']:.3f}" for k, v in report.items())
    cosine = report["cosine"]
    return (
        f"{report['converted']} of {report['products']} products with weights, cosine to float32 "
        f"{cosine['mean']:.4f} on average, {cosine['least']:.4f} at least"
    )
