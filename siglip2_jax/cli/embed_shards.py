"""`siglip2 embed --out DIR`: embeddings of any number of images, on any number of processes."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from siglip2_jax.cli.options import add_shard_option, load_model, use_all_devices
from siglip2_jax.cli.printing import print_json

if TYPE_CHECKING:
    from siglip2_jax.data.items.item import Columns
    from siglip2_jax.inference.shards import Summary

_ALONE = "shard", "columns", "image_column", "caption_column", "id_column", "float32", "workers"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a directory of files."""
    many = parser.add_argument_group("a directory of Parquet files, for any number of images")
    add_shard_option(many, default=None, what="shards", otherwise="JAX's number of the process")
    many.add_argument("--float32", action="store_true", help="write float32 instead of float16")
    add_item_options(many)


def add_item_options(many: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """Adds what is kept of each item, and how it is read."""
    many.add_argument(
        "--columns",
        metavar="NAME[:TYPE],…",
        type=_columns,
        default={},
        help="columns or fields of the source to keep, as text or as int64, float64 or bool: "
        "source,similarity:float64",
    )
    many.add_argument("--image-column", metavar="NAME", help="column of images (default: image)")
    many.add_argument(
        "--caption-column", metavar="NAME", help="column of captions (default: a usual name)"
    )
    many.add_argument(
        "--id-column", metavar="NAME", help="column of ids (default: paths, keys and rows)"
    )
    many.add_argument(
        "--workers",
        type=_workers,
        default="auto",
        metavar="N|auto",
        help="processes that decode images; 0 for threads (default: auto, all cores but one)",
    )
    many.add_argument(
        "--scaled-decode",
        action="store_true",
        help="decode large JPEGs at 1/2, 1/4 or 1/8 of their size, where that changes little",
    )


def refuse_options(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Refuses the options of a directory where a single file is written.

    Raises:
      ValueError: there is one.
    """
    for name in (*_ALONE, "scaled_decode"):
        if getattr(args, name) != parser.get_default(name):
            option = name.replace("_", "-")
            raise ValueError(
                f"--{option} is for a directory of Parquet files, and {args.out} is a single file; "
                "leave it out, or give a directory as --out"
            )


def run_merge(args: argparse.Namespace) -> int:
    """Checks that a directory is complete, and commits it."""
    from siglip2_jax.inference.shards import merge

    merged = merge(args.out)
    if args.json:
        print_json(merged._asdict() | {"files": len(merged.files)})
    else:
        print(
            f"{args.out} is complete: {merged.images} images in {len(merged.files)} files, "
            f"{merged.errors} of them without an embedding"
        )
    return int(merged.images == merged.errors)


def run(args: argparse.Namespace) -> int:
    """Embeds a share; exit code 1 if it has images and none could be embedded."""
    from siglip2_jax.data.items.find import find_items
    from siglip2_jax.inference.shards import Options, embed_shards
    from siglip2_jax.progress import progress

    if args.overwrite:
        raise ValueError(
            f"--overwrite is for a single file; to start {args.out} anew, remove the directory "
            "while no process writes to it"
        )
    shards = find_items(args.images, columns := chosen_columns(args))
    options = Options(
        max_num_patches=args.max_num_patches,
        batch_size=args.batch_size,
        embedding="float32" if args.float32 else "float16",
        scaled_decode=args.scaled_decode,
        columns=columns,
        types=args.columns,
        workers=args.workers,
        strict=args.strict,
    )
    model = load_model(args)
    use_all_devices(model)
    with progress("embedding shards") as update:
        summary = embed_shards(model, shards, args.out, options, shard=args.shard, update=update)
    if args.json:
        print_json(summary.to_json())
    else:
        print(_sentence(summary))
    return int(0 < summary.images == summary.errors)


def chosen_columns(args: argparse.Namespace) -> Columns:
    """Columns that `add_item_options` described."""
    from siglip2_jax.data.items.item import Columns

    return Columns(args.image_column, args.caption_column, args.id_column, tuple(args.columns))


def _sentence(summary: Summary) -> str:
    rates = summary.to_json()
    before = f" ({summary.skipped} were there)" if summary.skipped else ""
    return (
        f"wrote {summary.shards - summary.skipped} of {summary.shards} shards{before} to "
        f"{summary.out}: {summary.images} images, {summary.errors} without an embedding, "
        f"{rates['images_per_second']:.1f} images/s, {rates['data_wait']:.0%} of the time waiting "
        "for data; `siglip2 embed --merge` checks that all shards are there"
    )


def _columns(text: str) -> dict[str, str]:
    """An argparse type: names with their types."""
    from siglip2_jax.inference.shards.schema import check_fields

    fields: dict[str, str] = {}
    for part in text.split(","):
        name, colon, kind = part.rpartition(":") if ":" in part else (part, "", "string")
        fields[name] = kind
    try:
        check_fields(fields)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return fields


def _workers(text: str) -> int | str:
    """An argparse type: a number of processes."""
    if text != "auto" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of processes nor auto")
    return text if text == "auto" else int(text)
