"""`siglip2 data bench`: rates at which this machine delivers a config's data."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from siglip2_jax.cli.options import add_config_options, load_run, positive
from siglip2_jax.cli.printing import print_json

if TYPE_CHECKING:
    from siglip2_jax.config import ResolvedStage, TrainConfig


_ROWS = 512  # of the batches that are handed over: larger ones only take more memory


def add_parser(jobs: argparse._SubParsersAction) -> None:
    """Adds the job."""
    parser = jobs.add_parser(
        "bench",
        help="measure reading, preparation and transport of a config's data on this machine",
        description="Reads a stage's data at random places, prepares some of it, and hands batches "
        "over from worker processes, each for some seconds and apart from the others. Compares the "
        "rates with what a step needs, as `siglip2 plan` prints it. The exit code is 1 if they are "
        "too low.",
        epilog="example: siglip2 data bench my_config.py --images-per-second 3090",
    )
    add_config_options(parser)
    parser.add_argument("--stage", help="name of the stage (default: the first)")
    parser.add_argument(
        "--budget", type=positive, help="sequence length, in patches (default: every length)"
    )
    parser.add_argument(
        "--seconds", type=positive, default=3, help="seconds of each measurement (default: 3)"
    )
    need = parser.add_mutually_exclusive_group()
    need.add_argument(
        "--images-per-second", type=positive, metavar="N", help="images that this host's chips need"
    )
    need.add_argument(
        "--step-ms",
        type=positive,
        metavar="MS",
        help="milliseconds of a step, in which the chips of all hosts need a batch",
    )
    parser.add_argument(
        "--hosts",
        type=positive,
        default=1,
        help="number of hosts that share a batch (default: 1)",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measures and prints; 1 if something is too slow."""
    import os

    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # no device is needed
    config = load_run(args)
    stage = config.resolved[0] if args.stage is None else config.find_stage(args.stage)
    budgets = [x for x in stage.lengths.budgets if args.budget in (None, x)]
    if not budgets:
        known = list(stage.lengths.budgets)
        raise ValueError(f"no stage trains with {args.budget} patches; expected one of {known}")
    if (args.images_per_second or args.step_ms) and len(budgets) > 1:
        raise ValueError(
            f"the need is of one sequence length and the stage has {len(budgets)}; add --budget"
        )
    summary = _measure(config, stage, budgets, args)
    if args.json:
        print_json(summary)
    else:
        print("\n".join(_lines(summary)))
    return 0 if all(row["enough"] is not False for row in summary["budgets"]) else 1


def _measure(
    config: TrainConfig, stage: ResolvedStage, budgets: list[int], args: argparse.Namespace
) -> dict[str, Any]:
    from siglip2_jax.data.tools.bench import prepare_rate, together
    from siglip2_jax.data.workers.machine import usable_cores
    from siglip2_jax.doctor.input import read_rates
    from siglip2_jax.progress import progress
    from siglip2_jax.train.inputs import open_tokenizer, stage_pipeline

    pipeline = stage_pipeline(stage, open_tokenizer(config))
    cores = usable_cores()
    with progress("measuring") as show:
        show(0, 1 + len(budgets), "reading")
        reads = read_rates(stage.data, float(args.seconds))
        rows = []
        for i, budget in enumerate(budgets, 1):
            show(i, 1 + len(budgets), f"{budget} patches")
            rates = [
                (x.share, prepare_rate(x.sample, pipeline.prepare, budget, float(args.seconds)))
                for x in reads
            ]
            row = {
                "budget": budget,
                "prepare": together(rates),
                "transport": _transport(stage, pipeline.prepare, budget, args.hosts),
                "need": _need(stage, budget, args),
            }
            rows.append(row | _verdict(row, together([(x.share, x.rate) for x in reads]), cores))
    return {
        "stage": stage.name,
        "cores": cores,
        "read": [x.to_json() for x in reads],
        "budgets": rows,
    }


def _transport(stage: ResolvedStage, prepare: Any, budget: int, hosts: int) -> float:
    """Examples that the training process takes from its workers in a second of its CPU time."""
    import jax

    from siglip2_jax.data.collate import blank_row
    from siglip2_jax.data.tools.transport import transport_rate

    row = blank_row(
        prepare.preprocess, prepare.tokenizer.length, prepare.transforms, budget, prepare.pixels
    )
    rows = max(1, stage.lengths.batch_size(budget, stage.read_size) // hosts)
    rate, _ = transport_rate(row, min(rows, _ROWS), jax.device_put)
    return rate


def _need(stage: ResolvedStage, budget: int, args: argparse.Namespace) -> float | None:
    """Images that this host's chips need in a second, if that was said."""
    if args.images_per_second:
        return float(args.images_per_second)
    if args.step_ms:
        batch = stage.lengths.batch_size(budget, stage.read_size)
        return batch / args.hosts / args.step_ms * 1000
    return None


def _verdict(row: dict[str, Any], read: float, cores: int) -> dict[str, Any]:
    """Rates that are too low for the need; `enough` is None where there is no need."""
    need = row["need"]
    if need is None:
        return {"slow": [], "enough": None}
    rates = {"read": read, "prepare": cores * row["prepare"], "transport": row["transport"]}
    slow = [name for name, rate in rates.items() if rate < need]
    return {"slow": slow, "enough": not slow}


def _lines(summary: dict[str, Any]) -> list[str]:
    lines = [f"stage {summary['stage']}, on {summary['cores']} cores"]
    for read in summary["read"]:
        bad = f", {read['bad']} could not be used" if read["bad"] else ""
        lines.append(
            f"  read       {read['images_per_second']:,.0f} images/s, "
            f"{read['megabytes_per_second']:,.0f} MB/s, {read['requests_per_second']:,.0f} "
            f"requests/s of {read['source']} ({read['share']:.0%} of the examples{bad})"
        )
    for row in summary["budgets"]:
        lines += [
            f"{row['budget']} patches",
            f"  prepare    {row['prepare']:,.0f} images/s a core",
            f"  transport  {row['transport']:,.0f} images/s of the training process's CPU",
        ]
        if row["need"] is not None:
            verdict = f"too slow: {', '.join(row['slow'])}" if row["slow"] else "enough"
            lines.append(f"  need       {row['need']:,.0f} images/s: {verdict}")
    return lines
