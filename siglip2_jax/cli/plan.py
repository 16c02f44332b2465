"""`siglip2 plan`: needs of a config on a TPU slice, computed without one."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from siglip2_jax.cli import plan_embed
from siglip2_jax.cli.options import add_config_options, find_run, load_run, positive, price
from siglip2_jax.cli.printing import print_json
from siglip2_jax.planner.host_cores import IMAGES_PER_CORE_SECOND

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from siglip2_jax.config import ResolvedStage, TrainConfig
    from siglip2_jax.planner.host_input import Assumptions
    from siglip2_jax.planner.results import Results
    from siglip2_jax.planner.search import Candidate

GIB = 2**30
INTERRUPTED = 130


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "plan",
        help="compile a config for a TPU slice: memory, time, cost; no TPU needed",
        description="Compiles every stage's step, for each of its sequence lengths, with the real "
        "TPU compiler (extra `tpu`, Linux x86), and prints time, memory, days and chip-hours of "
        "the run; of a chosen stage or length also traffic and the largest operations. A program "
        "takes minutes the first time; what was compiled is kept. Times are estimates of the "
        'compiler. `siglip2 plan --embed "B/16 256"` plans the embedding of images instead.',
        epilog="example: siglip2 plan siglip2_b16 --topology v5e:16x16 --price 1.2",
    )
    add_config_options(parser, required=False)
    parser.add_argument(
        "--topology", default="v5e:16x16", help="topology of one TPU slice (default: v5e:16x16)"
    )
    parser.add_argument(
        "--slices", type=positive, default=1, help="number of TPU slices (default: 1)"
    )
    parser.add_argument("--stage", help="name of the stage to plan (default: every stage)")
    parser.add_argument(
        "--budget",
        type=positive,
        help="sequence length to plan, in patches (default: every length of the config)",
    )
    parser.add_argument(
        "--price",
        type=price,
        metavar="DOLLARS",
        help="price of a chip for an hour, to compute the cost (default: hours alone)",
    )
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="compile everything again, and keep nothing (default: what was compiled is kept in "
        "siglip2_jax/plans in the user's cache)",
    )
    parser.add_argument(
        "--largest-batch", action="store_true", help="also find the largest batch that fits"
    )
    parser.add_argument(
        "--images-per-core-second",
        type=positive,
        metavar="N",
        help="number of images that one CPU core prepares per second, to compute cores per host; "
        "scripts/bench_input.py measures it "
        f"(default: {IMAGES_PER_CORE_SECOND:g}, for 1024x768 JPEGs without views)",
    )
    parser.add_argument(
        "--kilobytes-per-image",
        type=positive,
        default=264,
        metavar="N",
        help="size of an image's file, to compute bandwidth and memory (default: 264)",
    )
    parser.add_argument(
        "--images-per-request",
        type=positive,
        default=128,
        metavar="N",
        help="number of images that are read from a store at once (default: 128)",
    )
    parser.add_argument(
        "--dollars-per-1000-requests",
        type=float,
        default=0.0004,
        metavar="PRICE",
        help="price of 1,000 reads from a store (default: 0.0004, class B of Cloud Storage)",
    )
    search = parser.add_argument_group(
        "search",
        "Tries settings for one stage and sequence length. Ctrl-C ends the search after the "
        "program in compilation and prints the results so far.",
    )
    search.add_argument(
        "--search", action="store_true", help="compare compute settings by time and memory"
    )
    search.add_argument(
        "--batches", help="batch sizes to try, such as 8192,32768 (default: that of the config)"
    )
    search.add_argument(
        "--remats",
        help="remat policies to try (the share of layers to compute again, or activations saved "
        "for the backward pass), such as none,0.5,full,attn_out+x_mid (default: seven policies)",
    )
    search.add_argument(
        "--scan",
        choices=("both", "scan", "unrolled"),
        default="both",
        help="execution of the layers: in a loop (scan), unrolled, or both in turn (default: both)",
    )
    plan_embed.add_options(parser)
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compiles and prints; 1 if something does not fit."""
    import os

    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # a plan never touches a device
    from siglip2_jax.planner.calibration import CALIBRATION
    from siglip2_jax.planner.topology import topology_mesh
    from siglip2_jax.train.inputs import check_batches

    plan_embed.check_options(args)
    if args.embed is not None:
        return plan_embed.run(args, _assumed(args), _results(args))
    _check_options(args)
    config = load_run(args)
    mesh = topology_mesh(args.topology, args.slices, config.replica)
    check_batches(config, mesh.size)
    work = _chosen(config, args)
    where = f"{args.slices} x {args.topology}" if args.slices > 1 else args.topology
    summary = {"topology": args.topology, "slices": args.slices, "mesh": dict(mesh.shape)}
    summary["calibration"] = CALIBRATION.to_json()
    act = _search if args.search else _plan
    code, details, text = act(work, mesh, where, args)
    if args.json:
        print_json(summary | details)
    else:
        print(text)
    return code


Answer = tuple[int, dict[str, object], str]  # exit code, JSON, text


def _plan(
    work: list[tuple[ResolvedStage, int]],
    mesh: Mesh,
    where: str,
    args: argparse.Namespace,
) -> Answer:
    """Every program once."""
    import dataclasses

    from siglip2_jax.planner.cost import cost_of, cost_table
    from siglip2_jax.planner.host_input import host_input
    from siglip2_jax.planner.many import Job, plan_all
    from siglip2_jax.planner.max_batch import largest_batch
    from siglip2_jax.planner.plan import StepPlan
    from siglip2_jax.planner.report import report
    from siglip2_jax.progress import progress

    results, assumed = _results(args), _assumed(args)
    origin, slices = find_run(args), args.slices
    stages = {Job(origin, stage.name, x, args.topology, slices): stage for stage, x in work}
    answers = {}
    with progress("compiling") as show:
        show(0, len(stages))
        for job, answer in plan_all(list(stages), results):
            answers[job] = answer
            show(len(answers), len(stages), f"stage {job.stage}, {job.budget} patches")
    answers = [(job, answers[job]) for job in stages]
    plans = {job: answer for job, answer in answers if isinstance(answer, StepPlan)}
    needs = [host_input(plan, stages[job], assumed) for job, plan in plans.items()]
    largest = [largest_batch(*x, mesh, results) for x in work] if args.largest_batch else []
    cost = cost_of([plan for plan in plans.values() if plan.fits], assumed, args.price)
    summary: dict[str, object] = {
        "steps": [
            answer.to_json()
            if isinstance(answer, StepPlan)
            else {"stage": job.stage, "budget": job.budget, "fits": False, "error": str(answer)}
            for job, answer in answers
        ],
        "total": dataclasses.asdict(cost),
        "input": {
            "assumed": dataclasses.asdict(assumed),
            "hosts": [dataclasses.asdict(its_needs) for its_needs in needs],
        },
    }
    summary |= {"largest": [plan.to_json() for plan in largest]} if largest else {}
    is_detailed = args.stage is not None or args.budget is not None or len(work) == 1
    lines = [report(list(plans.values()), where, needs, assumed), ""] if is_detailed else []
    lines += [
        f"largest batch at {plan.budget} patches: {plan.batch_size:,} "
        f"({plan.memory['peak'] / GIB:.1f} GiB, {plan.seconds * 1e3:.0f} ms)"
        for plan in largest
    ]
    lines.append(cost_table(answers, f"{where} ({mesh.size:,} chips)", assumed, args.price))
    fit = [isinstance(answer, StepPlan) and answer.fits for _, answer in answers]
    return 0 if all(fit) else 1, summary, "\n".join(lines)


def _search(
    work: list[tuple[ResolvedStage, int]],
    mesh: Mesh,
    where: str,
    args: argparse.Namespace,
) -> Answer:
    """One program with many settings; rows go to standard error as they come."""
    from siglip2_jax.planner.plan import plan_step
    from siglip2_jax.planner.report import row, search_table
    from siglip2_jax.planner.search import pareto, search
    from siglip2_jax.progress import progress

    if len(work) > 1:
        raise ValueError(
            f"--search plans one program and {len(work)} are selected; add --stage and --budget"
        )
    ((stage, budget),) = work
    tried = _candidates(stage, budget, mesh, args)
    trials, stopped, results = [], False, _results(args)

    def plan(changed: ResolvedStage, batch_size: int):
        show(len(trials), len(tried), str(tried[len(trials)]))
        return plan_step(changed, budget, mesh, batch_size, results)

    try:
        with progress("compiling") as show:
            for trial in search(stage, tried, plan):
                trials.append(trial)
                print(row(trial), file=sys.stderr, flush=True)
                show(len(trials), len(tried))
    except KeyboardInterrupt:
        stopped = True
    title = f"stage {stage.name}, {budget} patches on {where} ({mesh.size:,} chips)"
    if stopped:
        title += f", stopped after {len(trials)} of {len(tried)}"
    best = pareto(trials)
    summary = {"stage": stage.name, "budget": budget, "stopped": stopped}
    summary |= {"trials": [trial.to_json() | {"pareto": trial in best} for trial in trials]}
    code = INTERRUPTED if stopped else 0 if best else 1
    return code, summary, search_table(trials, title)


def _results(args: argparse.Namespace) -> Results:
    """Results of earlier commands, unless they are to be measured again."""
    from siglip2_jax.planner.results import NO_RESULTS, user_results

    return NO_RESULTS if args.fresh else user_results()


def _assumed(args: argparse.Namespace) -> Assumptions:
    """Assumptions on the images and their store, from the options."""
    from siglip2_jax.planner.host_input import Assumptions

    return Assumptions(
        images_per_core_second=float(args.images_per_core_second or IMAGES_PER_CORE_SECOND),
        image_bytes=args.kilobytes_per_image * 1e3,
        images_per_request=args.images_per_request,
        dollars_per_request=args.dollars_per_1000_requests / 1e3,
    )


def _check_options(args: argparse.Namespace) -> None:
    narrowed = args.batches or args.remats or args.scan != "both"
    if narrowed and not args.search:
        raise ValueError("--batches, --remats and --scan narrow a search down; add --search")
    if args.search and args.largest_batch:
        raise ValueError("--search tries the sizes of --batches; leave --largest-batch out")


def _candidates(
    stage: ResolvedStage, budget: int, mesh: Mesh, args: argparse.Namespace
) -> list[Candidate]:
    """Settings to try, from the options."""
    from siglip2_jax.planner.search import REMATS, candidates, remat_of

    unit = mesh.size * stage.optim.accumulate
    sizes = [stage.lengths.batch_size(budget, stage.read_size)]
    if args.batches:
        sizes = [int(size) if size.isdecimal() else 0 for size in args.batches.split(",")]
    if any(size < 1 or size % unit for size in sizes):
        raise ValueError(
            f"--batches is {args.batches!r}, expected multiples of {unit} (chips x microbatches) "
            "with commas between"
        )
    scans = {"both": (True, False), "scan": (True,), "unrolled": (False,)}[args.scan]
    if not args.remats:
        return candidates(sizes, scans, REMATS)
    return candidates(sizes, scans, [remat_of(text) for text in args.remats.split(",")])


def _chosen(config: TrainConfig, args: argparse.Namespace) -> list[tuple[ResolvedStage, int]]:
    """Stage and budget of every program to compile."""
    stages = config.resolved if args.stage is None else (config.find_stage(args.stage),)
    programs = [
        (stage, budget)
        for stage in stages
        for budget in stage.lengths.budgets
        if args.budget in (None, budget)
    ]
    if not programs:
        known = sorted({budget for stage in stages for budget in stage.lengths.budgets})
        raise ValueError(f"no stage trains with {args.budget} patches; expected one of {known}")
    return programs
