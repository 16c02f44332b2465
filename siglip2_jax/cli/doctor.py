"""`siglip2 doctor`: a machine, or every host of a slice, before its first run."""

from __future__ import annotations

import argparse

from siglip2_jax.cli.compilation import add_cache_option, use_cache
from siglip2_jax.cli.options import add_config_options, add_host_options, load_run, positive
from siglip2_jax.cli.printing import print_json

SECONDS = 180


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "doctor",
        help="check this machine for a run: devices, kernels, links, rates, data, workdir",
        description="Checks versions, devices, memory, disk, clocks, the links between devices, "
        "every fast program at the config's shapes against the plain one, a step of the config "
        "against its estimate, the rate of its data, and the workdir. Run the same command on "
        "every host of a slice; it takes the arguments of `siglip2 train`. Each line is PASS, FAIL "
        "with a way out, or SKIP with a reason. The exit code is 1 if anything fails.",
        epilog="example: siglip2 doctor siglip2_b16 --workdir /tmp/run",
    )
    add_config_options(parser, required=False)
    parser.add_argument("--workdir", help="directory of the run, local or gs://, to write to")
    parser.add_argument(
        "--data",
        metavar="FILES",
        help="tars, Parquet or ArrayRecord files, or a folder with captions, to read in place of "
        "the config's",
    )
    parser.add_argument(
        "--stage", help="name of the stage whose step and data are checked (default: the first)"
    )
    parser.add_argument(
        "--seconds",
        type=positive,
        default=SECONDS,
        help=f"seconds for all checks; those that do not fit are skipped (default: {SECONDS})",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    add_cache_option(parser, default="WORKDIR/programs, or else the user's cache")
    add_host_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Checks and prints; 1 if something fails."""
    config = load_run(args) if args.config else None
    if config is None and (args.set or args.stage):
        raise ValueError("--set and --stage are of a config; name a CONFIG before them")
    from siglip2_jax.doctor.checks import Doctor
    from siglip2_jax.doctor.examine import examine
    from siglip2_jax.doctor.report import report
    from siglip2_jax.recipes import b16_256
    from siglip2_jax.train.distributed import end, is_first, join_hosts

    if not args.no_distributed:
        join_hosts(args.coordinator, args.num_processes, args.process_id)
    use_cache(args, default=args.workdir and f"{args.workdir.rstrip('/')}/programs")
    doctor = Doctor(config, b16_256.config(), args.workdir, args.stage, args.data)
    examination = examine(doctor.phases(), float(args.seconds))
    if is_first() and args.json:
        print_json({"findings": [x.to_json() for x in examination.findings]})
    elif is_first():
        print(report(examination.findings))
    code = 0 if examination.healthy else 1
    if examination.stuck:
        end(code)
    return code
