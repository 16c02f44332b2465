"""The option `--compilation-cache`, and what commands do with it."""

from __future__ import annotations

import argparse
import os

OPTION = "--compilation-cache"


def _directory(text: str) -> str:
    if "://" in text and not text.startswith("gs://"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a local path, nor on gs://, nor `off`")
    return text


def add_cache_option(
    parser: argparse.ArgumentParser, default: str = "siglip2_jax/programs in the user's cache"
) -> None:
    """Adds the directory of compiled programs.

    Args:
      parser: gets the option.
      default: the directory where none is chosen, for the help.
    """
    parser.add_argument(
        OPTION,
        metavar="DIR|off",
        type=_directory,
        help="directory of compiled programs, local or gs://, which a later start reads instead of "
        f"compiling again; off keeps none (default: {default})",
    )


def use_cache(args: argparse.Namespace, default: str | os.PathLike[str] | None = None) -> None:
    """Keeps compiled programs where `add_cache_option` says, or else where JAX's settings say.

    Args:
      args: those of the command.
      default: the directory where none is chosen; None is the user's.
    """
    from siglip2_jax.cache_files import user_cache
    from siglip2_jax.compilation_cache import keep_programs, place_of_jax

    choice = args.compilation_cache
    if choice or not place_of_jax():
        keep_programs(None if choice == "off" else choice or default or user_cache("programs"))
