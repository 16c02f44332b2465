"""`siglip2 index`: a database of images that can be searched."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from typing import TYPE_CHECKING, Any

from siglip2_jax.cli import embed_shards
from siglip2_jax.cli.compilation import use_cache
from siglip2_jax.cli.options import add_model_options, load_model, use_all_devices
from siglip2_jax.cli.printing import print_json

if TYPE_CHECKING:
    from siglip2_jax.search.indexing import Summary
    from siglip2_jax.search.place import Place
    from siglip2_jax.search.writer import Writer


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "index",
        help="make or update a database of images for `siglip2 search`",
        description="Embeds the images that the database DB does not have, and adds them; or adds "
        "what `siglip2 embed --out DIR` has embedded. Images are known by their content: each is "
        "embedded once. The same command continues an interrupted one. The database takes one "
        "model, preprocessing, text normalisation and token budget.",
        epilog="example: siglip2 index photos.db MODEL photos/ 'more/*.jpg' --prune",
    )
    parser.add_argument(
        "db", metavar="DB", help="folder of the database, or its URI in a store: gs://, s3://"
    )
    add_model_options(parser, required=False)
    images = parser.add_argument(
        "images",
        metavar="PATH",
        nargs="+",  # not "*", which would be matched before an option, and no more after it
        default=[],
        help="image files, directories or globs; tars, Parquet, ArrayRecord, tables of paths "
        "(.csv, .tsv, .jsonl), tfds:NAME:SPLIT",
    )
    images.required = False
    parser.add_argument(
        "--shards",
        metavar="DIR",
        nargs="+",
        default=[],
        help="directories that `siglip2 embed --out DIR` has written and merged",
    )
    parser.add_argument(
        "--prune",
        action="store_true",
        help="remove the images that are not among those named here, and correct moved paths",
    )
    parser.add_argument(
        "--approximate",
        action="store_true",
        help="also build an approximate index, whose recall is measured; beyond 2,000,000 images "
        "it is built without being asked for",
    )
    parser.add_argument("--json", action="store_true", help="print a summary as JSON")
    embed_shards.add_item_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Updates a database; exit code 1 if there were images and none could be embedded."""
    from siglip2_jax.search.place import Place

    if args.images and args.shards:
        raise ValueError("there are both images and --shards; give one of them at a time")
    if args.source and not (args.images or args.shards):
        raise ValueError(
            f"there is nothing to index; give images after the model {args.source}, or --shards DIR"
        )
    if not args.source and not args.shards and not args.approximate:
        raise ValueError("there is nothing to do; give a model and images, or --shards DIR")
    place = Place(args.db)
    if args.shards:
        writer, summary = _add_shards(place, args)
    elif args.images:
        writer, summary = _add_images(place, args)
    else:
        writer, summary = _only_finish(place, args)
    rows = writer.table.count_rows()
    figures = {"database": place.uri, "images": rows, **dataclasses.asdict(summary)}
    recall = writer.settings.get("recall_at_10")
    if args.json:
        print_json(figures | {"recall_at_10": recall})
    else:
        print(_sentence(figures))
        if recall is not None:
            print(f"approximate index: recall@10 {recall:.1%} of exact search")
    return int(0 < summary.read == summary.errors)


def _add_images(place: Place, args: argparse.Namespace) -> tuple[Writer, Summary]:
    from siglip2_jax.data.items.find import find_items
    from siglip2_jax.inference.shards import Options
    from siglip2_jax.progress import progress
    from siglip2_jax.search.database import settings_of
    from siglip2_jax.search.indexing import index_images
    from siglip2_jax.search.writer import writing

    shards = find_items(args.images, columns := embed_shards.chosen_columns(args))
    options = Options(
        max_num_patches=args.max_num_patches,
        batch_size=args.batch_size,
        scaled_decode=args.scaled_decode,
        columns=columns,
        types=args.columns,
        workers=args.workers,
    )
    place.connect()  # before the model, which takes longer
    model = load_model(args)
    use_all_devices(model)
    settings = settings_of(model, args.max_num_patches, args.scaled_decode, _origin(args))
    with writing(place, settings) as writer:
        with progress("indexing shards") as update:
            summary = index_images(
                writer,
                model,
                shards,
                options,
                prune=args.prune,
                update=update,
                skipped=lambda error: print(f"siglip2: skipped: {error}", file=sys.stderr),
            )
        writer.finish(args.approximate)
    return writer, summary


def _add_shards(place: Place, args: argparse.Namespace) -> tuple[Writer, Summary]:
    from siglip2_jax.inference.shards import read_shards
    from siglip2_jax.progress import progress
    from siglip2_jax.resumable import compare
    from siglip2_jax.search.database import describe, settings_of_shards
    from siglip2_jax.search.indexing import index_shards
    from siglip2_jax.search.writer import writing

    runs = [read_shards(path) for path in args.shards]
    origin = _origin(args) if args.source else None
    settings = settings_of_shards(runs[0].settings, origin)
    for path, other in zip(args.shards[1:], runs[1:], strict=True):
        rows = settings_of_shards(other.settings, origin)
        compare(
            args.shards[0], settings, rows | {"made_by": settings["made_by"]}, f"leave {path} out"
        )
    model = load_model(args) if args.source else None
    if model is not None:
        compare(args.shards[0], settings, describe(model), "give the model that made it")
    with writing(place, settings) as writer:
        with progress("indexing") as update:
            summary = index_shards(writer, runs, prune=args.prune, update=update)
        writer.finish(args.approximate, model)
    return writer, summary


def _only_finish(place: Place, args: argparse.Namespace) -> tuple[Writer, Summary]:
    from siglip2_jax.search.database import Database
    from siglip2_jax.search.indexing import Summary
    from siglip2_jax.search.writer import writing

    use_cache(args)
    database = Database.open(args.db)
    model = database.load_model() if database.settings["loaded_from"] else None
    with writing(place, database.settings) as writer:
        writer.finish(args.approximate, model)
    return writer, Summary()


def _origin(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `load` that give the model again, from any directory."""

    def absolute(path: str | None) -> str | None:
        return os.path.abspath(path) if path and os.path.exists(path) else path

    return {
        "source": absolute(args.source),
        "tokenizer": absolute(args.tokenizer),
        "stage": args.stage,
    }


def _sentence(figures: dict[str, Any]) -> str:
    parts = [f"{figures['added']} added", f"{figures['known']} were there"]
    parts += [f"{figures[name]} {name}" for name in ("removed", "renamed") if figures[name]]
    if figures["errors"]:
        parts.append(f"{figures['errors']} cannot be embedded")
    return f"{figures['database']} holds {figures['images']} images: {', '.join(parts)}"
