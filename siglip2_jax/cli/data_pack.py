"""`siglip2 data pack`: data sets as shards for training."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from siglip2_jax.cli.options import add_shard_option, any_path, local_path, positive, stored_path
from siglip2_jax.cli.printing import print_json

if TYPE_CHECKING:
    from siglip2_jax.data.sources import Source


def add_parser(jobs: argparse._SubParsersAction) -> None:
    """Adds the job."""
    parser = jobs.add_parser(
        "pack",
        help="turn tars, Parquet, a folder or a TFDS data set into shards for training",
        description="Writes ArrayRecord files, which are read at random positions, or tars with a "
        "manifest, which are read in blocks, also from a store. An interrupted job continues. "
        "Items without a readable image or a caption are left out and listed in a file of errors.",
        epilog="example: siglip2 data pack --tars '/data/cc/*.tar' --out /data/cc_records",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--tars",
        metavar="PATTERN",
        type=stored_path,
        help="glob of webdataset tars, as img2dataset writes them",
    )
    source.add_argument(
        "--parquet",
        metavar="PATTERN",
        type=stored_path,
        help="glob of Parquet files, as Hugging Face's datasets writes them",
    )
    source.add_argument("--folder", metavar="DIR", help="folder with captions.jsonl and images/")
    source.add_argument("--tfds", metavar="NAME", help="name of a prepared TFDS data set")
    parser.add_argument(
        "--captions",
        type=local_path,
        help="name of the folder's .jsonl of captions, or of the TFDS feature or Parquet column "
        "with captions",
    )
    parser.add_argument(
        "--template", help='template of captions made from fields, such as "a photo of a {name}"'
    )
    parser.add_argument(
        "--split", default="train", help="split of the TFDS data set (default: train)"
    )
    parser.add_argument(
        "--data-dir", type=local_path, help="directory in which the TFDS data set was prepared"
    )
    parser.add_argument(
        "--out", type=any_path, required=True, help="directory to write the shards to"
    )
    parser.add_argument(
        "--format",
        choices=("arrayrecord", "tar"),
        default="arrayrecord",
        help="arrayrecord for local disks, tar for stores (default: arrayrecord)",
    )
    parser.add_argument(
        "--shard-size", type=positive, default=10_000, help="examples per shard (default: 10000)"
    )
    parser.add_argument(
        "--shuffle",
        metavar="SEED",
        type=_seed,
        help="seed of a random order to write in (default: the order of the source)",
    )
    add_shard_option(parser)
    parser.add_argument("--json", action="store_true", help="print a summary as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Packs a data set; exit code 1 if nothing in it could be used."""
    import dataclasses

    from siglip2_jax.data.stores.manifest_files import Shard
    from siglip2_jax.data.tools.pack import pack
    from siglip2_jax.progress import progress

    with progress("packing") as show:
        result = pack(
            _source(args),
            args.out,
            kind=args.format,
            shard_size=args.shard_size,
            shard=Shard(*args.shard),
            shuffle=args.shuffle,
            progress=show,
        )
    text = "{examples} examples in {shards} shards ({bytes} bytes); {skipped} were bad"
    if result.left_out:
        text += ", {left_out} in the files are no samples that can be used"
    summary = dataclasses.asdict(result)
    if args.json:
        print_json(summary)
    else:
        print(text.format_map(summary))
    return 0 if result.examples else 1


def _source(args: argparse.Namespace) -> Source:
    from siglip2_jax.data.parquet import Parquet
    from siglip2_jax.data.sources import Folder
    from siglip2_jax.data.tars import Tars
    from siglip2_jax.data.tfds import Tfds

    if args.tars is not None:
        return Tars(args.tars)
    if args.parquet is not None:
        return Parquet(args.parquet, caption=args.captions or "caption", template=args.template)
    if args.folder is not None:
        captions = args.captions or "captions.jsonl"
        return Folder(args.folder, captions=captions, template=args.template)
    captions = args.captions or "captions"
    return Tfds(
        args.tfds, args.split, directory=args.data_dir, captions=captions, template=args.template
    )


def _seed(text: str) -> int:
    """An argparse type: a whole number from 0 up, below 2**32."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2**32 - 1")
    return int(text)
