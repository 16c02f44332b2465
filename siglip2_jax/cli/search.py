"""`siglip2 search`: images of a database by words, by images, and near-duplicates."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from siglip2_jax.cli.compilation import add_cache_option, use_cache
from siglip2_jax.cli.options import SOURCE_HELP, output_file, positive
from siglip2_jax.cli.printing import print_json

if TYPE_CHECKING:
    from siglip2_jax.search.hits import Hit, Results
    from siglip2_jax.search.index import Index


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "search",
        help="find images of a database by words or by images",
        description="Finds the images of a database, made by `siglip2 index`, that are nearest to "
        "each query. Scores are cosines: compare them with each other, not with 1; a caption and "
        "its image reach about 0.1 to 0.2. Search is exact unless an approximate index is used, "
        "whose recall is shown then.",
        epilog='example: siglip2 search photos.db "a red boat at dusk" --minus people',
    )
    parser.add_argument("db", metavar="DB", help="folder of the database, or its URI in a store")
    queries = parser.add_argument(
        "queries", metavar="QUERY", nargs="+", default=[], help="words to search for"
    )
    queries.required = False
    parser.add_argument(
        "--image",
        metavar="FILE",
        action="append",
        default=[],
        help="image to search for the like of; may be repeated",
    )
    parser.add_argument(
        "--minus",
        metavar="TEXT",
        action="append",
        default=[],
        help="words to take away from every query; may be repeated",
    )
    parser.add_argument(
        "--where",
        metavar="SQL",
        help="condition on columns of the database: \"width > 800 AND caption LIKE '%%boat%%'\"",
    )
    parser.add_argument(
        "--duplicates",
        metavar="COSINE",
        type=_cosine,
        help="list groups of images whose embeddings have at least this cosine, such as 0.95",
    )
    count = parser.add_mutually_exclusive_group()
    count.add_argument(
        "-k", metavar="N", type=positive, help="number of images of a query (default: 10)"
    )
    count.add_argument(
        "--threshold",
        metavar="COSINE|FILE",
        type=_threshold,
        help="show all images from this score on, or from that of a calibration, which is the "
        "result of `siglip2 calibrate`",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--exact",
        dest="approximate",
        action="store_const",
        const=False,
        help="search exactly, however many images there are",
    )
    how.add_argument(
        "--approximate",
        action="store_const",
        const=True,
        help="use the approximate index (default: only beyond 2,000,000 images)",
    )
    parser.add_argument(
        "--model",
        metavar="SOURCE",
        help=f"{SOURCE_HELP} (default: where it was when the database was made)",
    )
    add_cache_option(parser)
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="print JSON")
    shown.add_argument(
        "--html",
        metavar="FILE",
        type=output_file,
        help="page of thumbnails with scores to write, instead of a table",
    )
    parser.set_defaults(run=run)


def _cosine(text: str) -> float:
    """An argparse type: a number from -1 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = 2.0
    if not -1 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a cosine, a number from -1 to 1")
    return value


def _threshold(text: str) -> float | str:
    """An argparse type: a cosine, or a file's name."""
    try:
        float(text)
    except ValueError:
        return text
    return _cosine(text)


def _read_threshold(index: Index, path: str) -> float:
    """The cosine from which a calibration accepts a pair.

    Raises:
      ValueError: it was fitted with another model or token budget, or has no threshold.
    """
    from siglip2_jax.inference import read_calibration

    calibration = read_calibration(path)
    calibration.check(index.model.identity(), path)
    budget = index.model.preprocess.num_tokens(calibration.max_num_patches)
    if budget != index.database.settings["patches"]:
        raise ValueError(
            f"{path} was fitted to images of {budget} patches, and those of "
            f"{index.database.place.uri} have {index.database.settings['patches']}; fit it again "
            "with --max-num-patches"
        )
    return calibration.cosine_threshold


def run(args: argparse.Namespace) -> int:
    """Prints what is found."""
    from siglip2_jax.search import Index

    use_cache(args)
    index = Index.open(args.db, args.model)
    if isinstance(args.threshold, str):
        args.threshold = _read_threshold(index, args.threshold)
    facts: dict[str, Any] = {"database": index.database.place.uri, "images": len(index)}
    if args.duplicates is not None:
        results = _duplicates(index, args)
        facts["exact"] = True
    else:
        results = index.search(
            args.queries,
            images=args.image,
            minus=args.minus,
            k=args.k,
            threshold=args.threshold,
            where=args.where,
            approximate=args.approximate,
        )
        facts["exact"] = not index.is_approximate(args.approximate)
    if not facts["exact"] and (partitions := index.database.partitions):
        facts["recall_at_10"] = round(partitions.recall, 4)
    if args.json:
        shown = [
            {"query": query, "hits": [hit._asdict() for hit in hits]} for query, hits in results
        ]
        print_json(facts | {"results": shown})
    elif args.html:
        from siglip2_jax.search.contact_sheet import contact_sheet

        contact_sheet(results, args.html)
        print(f"wrote {args.html}: {sum(len(hits) for _, hits in results)} images")
    else:
        _print(results, facts)
    return 0


def _duplicates(index: Index, args: argparse.Namespace) -> Results:
    from siglip2_jax.progress import progress

    for name in ("queries", "image", "minus", "where", "k", "threshold", "approximate"):
        if getattr(args, name) not in (None, []):
            option = name if name == "queries" else f"-{name}" if name == "k" else f"--{name}"
            raise ValueError(
                f"--duplicates compares all images of the database with each other, and takes no "
                f"{option}; leave one of them out"
            )
    with progress("comparing") as update:
        groups = index.duplicates(args.duplicates, update=update)
    return [(f"group {i} of {len(group)} images", group) for i, group in enumerate(groups, 1)]


def _print(results: Results, facts: dict[str, Any]) -> None:
    """Prints a table for each query."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if os.isatty(1) else 160)
    for query, hits in results:
        table = Table(title=Text(query), title_justify="left", box=None)
        table.add_column("score", justify="right")
        table.add_column("image", overflow="fold")
        table.add_column("size")
        if any(hit.caption for hit in hits):
            table.add_column("caption")
        names = list(dict.fromkeys(name for hit in hits for name in hit.fields))
        for name in names:
            table.add_column(Text(name))
        for hit in hits:
            table.add_row(*_cells(hit, names, any(hit.caption for hit in hits)))
        console.print(table if hits else Text(f"{query}: nothing is found"))
    if not results:
        console.print(f"none among {facts['images']} images")
    if "recall_at_10" in facts:
        console.print(f"approximate: recall@10 {facts['recall_at_10']:.1%} against exact search")


def _cells(hit: Hit, names: list[str], captions: bool) -> list[Any]:
    from rich.text import Text

    caption = [Text(hit.caption or "")] if captions else []
    fields = [Text(str(hit.fields.get(name, ""))) for name in names]
    size = f"{hit.width}x{hit.height}"
    return [f"{hit.score:.3f}", Text(hit.id), size, *caption, *fields]
