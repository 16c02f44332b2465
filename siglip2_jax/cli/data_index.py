"""`siglip2 data index`: manifests of tars and Parquet files."""

from __future__ import annotations

import argparse

from siglip2_jax.cli.options import add_shard_option, stored_path
from siglip2_jax.cli.printing import print_json


def add_parser(jobs: argparse._SubParsersAction) -> None:
    """Adds the job."""
    parser = jobs.add_parser(
        "index",
        help="write the manifest of webdataset tars or Parquet files",
        description="Writes the folder `manifest` beside the files, with which training opens them "
        "at once and reads them in blocks; files in a store are not read without. For local tars, "
        "also TAR.idx.npz with the position of each sample. An interrupted job continues. Samples "
        "that cannot be used are counted.",
        epilog="example: siglip2 data index 'gs://BUCKET/train/*.tar' --shard 3/16",
    )
    parser.add_argument(
        "pattern",
        metavar="PATTERN",
        type=stored_path,
        help="directory or glob of webdataset tars or Parquet files; local, gs:// or s3://",
    )
    add_shard_option(parser)
    parser.add_argument("--json", action="store_true", help="print a summary as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Indexes files."""
    import dataclasses

    from siglip2_jax.data.stores.manifest_files import Shard
    from siglip2_jax.data.tools.index import index
    from siglip2_jax.progress import progress

    with progress("indexing") as show:
        result = index(args.pattern, shard=Shard(*args.shard), progress=show)
    if args.json:
        print_json(dataclasses.asdict(result))
    else:
        print(
            f"{result.files} files hold {result.examples} examples; {result.left_out} are left out"
        )
