"""The command `siglip2`: one file a subcommand."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from siglip2_jax.cli import (
    calibrate,
    caption,
    classify,
    configs,
    convert,
    data,
    demo,
    doctor,
    embed,
    eval,
    export,
    index,
    info,
    plan,
    push,
    search,
    serve,
    sweep,
    train,
    verify,
    watch,
)
from siglip2_jax.cli.libtpu import quieten_libtpu
from siglip2_jax.cli.noise import quiet_libraries
from siglip2_jax.cli.printing import escape_unprintable
from siglip2_jax.errors import reason_of

COMMANDS = (
    demo,
    info,
    classify,
    calibrate,
    embed,
    index,
    search,
    serve,
    eval,
    caption,
    convert,
    push,
    export,
    verify,
    doctor,
    train,
    watch,
    sweep,
    configs,
    plan,
    data,
)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    root = argparse.ArgumentParser(
        prog="siglip2", description="SigLIP 2 in JAX: training, zero-shot labels, embeddings."
    )
    root.add_argument("--version", action="store_true", help="print the version and exit")
    commands = root.add_subparsers(title="commands", metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
      The exit code: 0 on success, 1 where a check failed, 2 on bad input, 130 on Ctrl-C, 143
      where training saved and stopped on SIGTERM, 144 where it lost a process of another host.
    """
    escape_unprintable()
    quieten_libtpu()
    root = parser()
    args = root.parse_args(argv)
    if args.version:
        from siglip2_jax import __version__

        print(__version__)
        return 0
    if "run" not in args:
        root.print_help()
        return 2
    try:
        with quiet_libraries():
            _check_buckets(args)
            code = args.run(args) or 0
        sys.stdout.flush()  # here, so that a closed pipe is noticed here
        return code
    except BrokenPipeError:  # `siglip2 … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        print(f"siglip2: error: {_sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("siglip2: stopped by Ctrl-C", file=sys.stderr)
        return 130


def _check_buckets(args: argparse.Namespace) -> None:
    """Refuses `gs://` paths of a store that cannot be reached, before any work."""
    values = [
        x for value in vars(args).values() for x in (value if isinstance(value, list) else [value])
    ]
    paths = [os.fspath(x) for x in values if isinstance(x, (str, os.PathLike))]
    for path in paths:
        if path.startswith("gs://"):
            from siglip2_jax.checkpoints.source import check_bucket

            check_bucket(path)


def _sentence(error: Exception) -> str:
    """Formats an error as one line."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    notes = [x for x in getattr(error, "__notes__", ()) if "JAX has removed" not in x]
    places = "".join(f" ({note})" for note in notes)
    return reason_of(error) + places
