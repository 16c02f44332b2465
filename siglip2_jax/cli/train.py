"""`siglip2 train`: runs a config in a workdir; the same command resumes it."""

from __future__ import annotations

import argparse
import logging

from siglip2_jax.cli.compilation import add_cache_option, use_cache
from siglip2_jax.cli.options import add_config_options, add_host_options, find_run


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "train",
        help="train a model as a config says; resumes a workdir that holds a checkpoint",
        description="Runs all stages of a config. Run the same command on every host of a slice. "
        "After SIGTERM (preemption) all hosts save the same step and exit with 143. After a lost "
        "process the others exit with 144. The same command then resumes from the newest "
        "undamaged checkpoint.",
        epilog="example: siglip2 train tiny --workdir /tmp/tiny --set stages.main.steps=100",
    )
    add_config_options(parser)
    parser.add_argument(
        "--workdir",
        required=True,
        help="directory of checkpoints, metrics.jsonl and config.json; local or gs://",
    )
    add_cache_option(parser, default="WORKDIR/programs")
    add_host_options(parser)
    parser.set_defaults(run=run)


class Messages(logging.Formatter):
    """Log messages without tracebacks: libraries log errors of threads that they also raise."""

    def formatException(self, ei) -> str:
        """Empty text."""
        return ""


def run(args: argparse.Namespace) -> int:
    """Trains; 143 if SIGTERM ended it."""
    from siglip2_jax.config import load_config

    origin = find_run(args)
    config = load_config(*origin)
    from siglip2_jax.train.distributed import PREEMPTED, join_hosts, leave
    from siglip2_jax.train.loop import train
    from siglip2_jax.train.run import StoreError

    handler = logging.StreamHandler()
    handler.setFormatter(Messages())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("siglip2_jax").setLevel(logging.INFO)
    if not args.no_distributed:
        join_hosts(args.coordinator, args.num_processes, args.process_id)
    use_cache(args, default=f"{args.workdir.rstrip('/')}/programs")
    try:
        return 0 if train(config, args.workdir, origin) else PREEMPTED
    except StoreError as error:
        leave(str(error))  # threads that save retry for a quarter of an hour
