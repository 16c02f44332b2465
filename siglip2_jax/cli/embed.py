"""`siglip2 embed`: embeddings of many images or texts, to a file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from siglip2_jax.cli.options import add_model_options, any_path, load_model
from siglip2_jax.cli.printing import print_json

if TYPE_CHECKING:
    import numpy as np

    from siglip2_jax.inference.embedder import Embedder
    from siglip2_jax.preprocess.decode import ImageError


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "embed",
        help="write the embeddings of many images or texts to a file",
        description="Writes a NumPy file of float32 embeddings with the names of their items and "
        "the settings; siglip2_jax.inference.read_embeddings reads it. The same command continues "
        "an interrupted run. Unreadable images are left out and listed in OUT.errors.jsonl.",
        epilog="example: siglip2 embed MODEL --images photos/ 'more/*.jpg' --out photos.npz",
    )
    add_model_options(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--images", metavar="PATH", nargs="+", help="image files, directories or globs"
    )
    what.add_argument(
        "--texts", metavar="FILE", type=any_path, help="text file with one text per line"
    )
    parser.add_argument("--out", type=any_path, required=True, help=".npz file to write")
    parser.add_argument("--strict", action="store_true", help="stop at the first unreadable image")
    parser.add_argument(
        "--overwrite", action="store_true", help="start from the beginning and replace OUT"
    )
    parser.add_argument("--json", action="store_true", help="print a summary as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Embeds; exit code 1 if no item could be embedded."""
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
