"""`siglip2 embed`: embeddings of many images or texts, to files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from siglip2_jax.cli import embed_shards
from siglip2_jax.cli.options import add_model_options, any_path, load_model
from siglip2_jax.cli.printing import print_json

if TYPE_CHECKING:
    import numpy as np

    from siglip2_jax.inference.embedder import Embedder
    from siglip2_jax.preprocess.decode import ImageError


class _Merge(argparse.Action):
    """Flag of a job that needs no model."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, *_: Any) -> None:
        setattr(namespace, self.dest, True)
        for action in parser._actions:
            if action.dest == "source":
                action.required = False


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "embed",
        help="write the embeddings of many images or texts to files",
        description="Writes float32 embeddings to one NumPy file (--out FILE.npz) with the names "
        "of their items and the settings, or those of any number of images to a directory of "
        "Parquet files (--out DIR), one a shard, on any number of processes. The same command "
        "continues an interrupted run. Unreadable images are listed in OUT.errors.jsonl, or have "
        "the reason in the column `error`.",
        epilog="example: siglip2 embed MODEL --images '/data/*.tar' --out embeddings --shard 3/16",
    )
    add_model_options(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--images",
        metavar="PATH",
        nargs="+",
        help="image files, directories or globs; for a directory of Parquet files also tars, "
        "Parquet, ArrayRecord, tables of paths (.csv, .tsv, .jsonl) and tfds:NAME:SPLIT",
    )
    what.add_argument(
        "--texts", metavar="FILE", type=any_path, help="text file with one text per line"
    )
    what.add_argument(
        "--merge",
        action=_Merge,
        nargs=0,
        default=False,
        help="check that all shards of the directory are there, and commit it; needs no SOURCE",
    )
    parser.add_argument(
        "--out", type=any_path, required=True, help=".npz file or directory to write"
    )
    parser.add_argument("--strict", action="store_true", help="stop at the first unreadable image")
    parser.add_argument(
        "--overwrite", action="store_true", help="start from the beginning and replace the file"
    )
    parser.add_argument("--json", action="store_true", help="print a summary as JSON")
    embed_shards.add_options(parser)
    parser.set_defaults(run=partial(run, parser))


def run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Embeds; exit code 1 if no item could be embedded."""
    if args.merge:
        return embed_shards.run_merge(args)
    directory = args.out.suffix != ".npz" and (not args.out.suffix or args.out.is_dir())
    if args.images and directory:
        return embed_shards.run(args)
    embed_shards.refuse_options(args, parser)
    return _run_file(args)


def _run_file(args: argparse.Namespace) -> int:
    from siglip2_jax.inference.embedding_file import write_embeddings
    from siglip2_jax.progress import progress

    items, model = _items(args), load_model(args)

    def embed(remaining: Sequence[str]) -> Iterator[np.ndarray | ImageError]:
        start = len(items) - len(remaining)
        with progress("embedding", start) as update:
            for i, row in enumerate(_rows(model, remaining, args), start + 1):
                if isinstance(row, Exception):
                    if args.strict:
                        raise row
                    print(f"siglip2: skipped: {row}", file=sys.stderr)
                yield row
                update(i, len(items))

    settings, width = _settings(args, items, model), model.config.vision.width
    summary = write_embeddings(args.out, items, settings, width, embed, overwrite=args.overwrite)
    if args.json:
        print_json(summary)
    else:
        skipped = f", skipped {summary['skipped']}" if summary["skipped"] else ""
        print(f"wrote {args.out}: {summary['embedded']} embeddings{skipped}")
    return int(summary["embedded"] == 0)


def _items(args: argparse.Namespace) -> list[str]:
    """Image paths or texts, in order."""
    from siglip2_jax.data.files import find_images
    from siglip2_jax.data.text import read_lines

    if args.images:
        return find_images(args.images)
    texts = read_lines(args.texts)
    if not texts:
        raise ValueError(f"{args.texts} holds no text; expected one text a line")
    return texts


def _settings(args: argparse.Namespace, items: list[str], model: Embedder) -> dict[str, object]:
    """Settings that decide the numbers: stored beside them, compared before a run continues."""
    from siglip2_jax.fingerprint import fingerprint, fingerprint_file

    images = {
        "kind": "images",
        "max_num_patches": args.max_num_patches,
        "files": fingerprint([fingerprint_file(item) for item in items]),
    }
    return {**model.identity(), **(images if args.images else {"kind": "texts"})}


def _rows(
    model: Embedder, items: Sequence[str], args: argparse.Namespace
) -> Iterator[np.ndarray | ImageError]:
    """A row or an error for each item."""
    if args.images:
        yield from model.stream_images(items, args.max_num_patches, args.batch_size)
        return
    for start in range(0, len(items), args.batch_size):
        yield from model.embed_texts(
            items[start : start + args.batch_size], batch_size=args.batch_size
        )
