"""`siglip2 sweep`: trains a config with several settings and seeds, and tabulates the scores."""

from __future__ import annotations

import argparse
import shlex
import sys

from siglip2_jax.cli.options import add_config_options, positive
from siglip2_jax.cli.printing import print_json


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "sweep",
        help="train a config with several settings and seeds, and compare their scores",
        description="Trains every arm (a setting of --grid, or an --arm) with every seed, one run "
        "after the other, each in a process of its own and in WORKDIR/ARM/seedN. The same command "
        "goes on where it was stopped: finished runs are passed over. Ends with a table of the "
        "last and best value of every score and loss: mean and standard deviation over seeds, and "
        "the differences from the first arm, seed by seed, with their 95 % confidence interval.",
        epilog="example: siglip2 sweep tiny --grid optim.peak_lr=3e-4,1e-3 --seeds 3 "
        "--workdir /tmp/rates",
    )
    add_config_options(parser)
    parser.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="PATH=VALUE,VALUE",
        help="try each of these values of a field, named as in --set; several grids are combined",
    )
    parser.add_argument(
        "--arm",
        action="append",
        default=[],
        metavar="NAME:PATH=VALUE,PATH=VALUE",
        help="try these changes together, under a name; may be repeated, and the first is compared "
        "with the others",
    )
    parser.add_argument(
        "--seeds", type=positive, default=1, help="number of seeds, from 0 up (default: 1)"
    )
    parser.add_argument(
        "--workdir", required=True, help="directory of the runs' workdirs; local or gs://"
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--print",
        action="store_true",
        help="train nothing; print the command of each run that is not finished, for a cluster",
    )
    instead.add_argument(
        "--table", action="store_true", help="train nothing; print the table of finished runs"
    )
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Trains, or only prints; the exit code is as for `sweep.runs.train_all`."""
    from siglip2_jax.sweep.arms import read_arms
    from siglip2_jax.sweep.runs import plan_runs, train_all
    from siglip2_jax.sweep.table import gather

    arms = read_arms(args.grid, args.arm)
    runs = plan_runs(args.config, args.workdir, arms, range(args.seeds), args.set)
    if args.print:
        for planned in runs:
            if not planned.is_finished:
                print(shlex.join(("siglip2", *planned.arguments)))
        return 0
    code = 0 if args.table else train_all(runs, lambda text: print(text, file=sys.stderr))
    table = gather(runs)
    print_json(table.as_json()) if args.json else print(table.as_markdown())
    return code
