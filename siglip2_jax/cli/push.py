"""`siglip2 push`: an export to the Hugging Face Hub."""

from __future__ import annotations

import argparse
import os

from siglip2_jax.cli.options import local_path
from siglip2_jax.cli.printing import print_json


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "push",
        help="upload an export to the Hugging Face Hub",
        description="Checks that a directory is a whole export and uploads its files, and no "
        "others, as one commit. The token is that of `hf auth login` or HF_TOKEN.",
        epilog="example: siglip2 push b16_flowers me/siglip2-flowers --private",
    )
    parser.add_argument(
        "directory",
        metavar="DIR",
        type=local_path,
        help="directory that `siglip2 convert --to hf` or `siglip2 export` wrote",
    )
    parser.add_argument(
        "repository", metavar="OWNER/NAME", help="repository, which is made if need be"
    )
    parser.add_argument(
        "--private",
        action="store_true",
        help="make a new repository private (default: as its owner has set)",
    )
    parser.add_argument(
        "--revision",
        metavar="BRANCH",
        help="branch to write, which is made if need be (default: main)",
    )
    parser.add_argument("--message", metavar="TEXT", help="message of the commit")
    parser.add_argument("--json", action="store_true", help="print a summary as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Uploads and prints the address."""
    from siglip2_jax.checkpoints.hub import push

    upload = push(
        args.directory,
        args.repository,
        private=args.private or None,
        revision=args.revision,
        message=args.message,
    )
    kept = sorted(set(os.listdir(args.directory)) - set(upload.files))
    if args.json:
        print_json(upload._asdict() | {"not_uploaded": kept})
        return
    if kept:
        print(f"not uploaded, as they are no part of the export: {', '.join(kept)}")
    print(upload.url)
