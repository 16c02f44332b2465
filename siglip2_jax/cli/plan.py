"""`siglip2 plan`: what a config needs on a TPU slice, found without one."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from siglip2_jax.cli.options import add_config_options, load_run, positive

if TYPE_CHECKING:
    from siglip2_jax.train.plan import StepPlan

GIB = 2**30


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "plan",
        help="compile a config for a TPU slice: memory, time, traffic; no TPU needed",
        description="Compiles every stage's step, for each of its sequence lengths, with the real "
        "TPU compiler (extra `tpu`, Linux x86) and says what it needs per chip. Minutes per "
        "program. Times are the compiler's estimates: good for comparing, not for invoices.",
        epilog="example: siglip2 plan configs/b16_naflex.py --topology v5e:16x16 --budget 256",
    )
    add_config_options(parser)
    parser.add_argument("--topology", default="v5e:16x16", help="of one slice (default: v5e:16x16)")
    parser.add_argument("--slices", type=positive, default=1, help="how many (default: 1)")
    parser.add_argument("--stage", help="only this stage")
    parser.add_argument("--budget", type=positive, help="only this sequence length")
    parser.add_argument(
        "--largest-batch", action="store_true", help="also find the largest batch that fits"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compiles and prints; 1 if something does not fit."""
    import json
    import os

    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # a plan never touches a device
    from siglip2_jax.progress import progress
    from siglip2_jax.train.inputs import check_batches
    from siglip2_jax.train.plan import largest_batch, plan_step
    from siglip2_jax.train.topology import topology_mesh

    config = load_run(args)
    replica = config.replica * args.slices if config.replica % args.slices else config.replica
    mesh = topology_mesh(args.topology, args.slices, replica)
    check_batches(config, mesh.size)
    work = list(_chosen(config, args))
    plans, largest = [], []
    with progress("compiling") as show:
        for i, (index, budget) in enumerate(work):
            show(i, len(work), f"stage {config.stages[index].name}, {budget} patches")
            plans.append(plan_step(config, index, budget, mesh))
            if args.largest_batch:
                largest.append(largest_batch(config, index, budget, mesh))
            show(i + 1, len(work))
    if args.json:
        found = {"topology": args.topology, "slices": args.slices, "mesh": dict(mesh.shape)}
        found |= {"steps": [plan.to_json() for plan in plans]}
        found |= {"largest": [plan.to_json() for plan in largest]} if largest else {}
        print(json.dumps(found, indent=2))
    else:
        print(
            report(plans, f"{args.slices} x {args.topology}" if args.slices > 1 else args.topology)
        )
        for plan in largest:
            print(
                f"largest batch at {plan.budget} patches: {plan.batch_size:,} "
                f"({plan.memory['peak'] / GIB:.1f} GiB, {plan.seconds * 1e3:.0f} ms)"
            )
    return 0 if all(plan.fits for plan in plans) else 1


def _chosen(config: Any, args: argparse.Namespace):
    """Stage index and budget of every program to compile."""
    from siglip2_jax.train.inputs import stage_lengths

    names = [stage.name for stage in config.stages]
    if args.stage is not None and args.stage not in names:
        raise ValueError(f"there is no stage {args.stage!r}; the config has {', '.join(names)}")
    found = [
        (index, budget)
        for index, stage in enumerate(config.resolved)
        if args.stage in (None, stage.name)
        for budget in stage_lengths(stage).budgets
        if args.budget in (None, budget)
    ]
    if not found:
        raise ValueError(f"no stage trains with {args.budget} patches")
    return found


def report(plans: list[StepPlan], topology: str) -> str:
    """The plans as text, per chip and step."""
    blocks = [_block(plan, topology) for plan in plans]
    days = sum(plan.days for plan in plans)
    return "\n\n".join([*blocks, f"all steps above: {days:.2f} days"])


def _block(plan: StepPlan, topology: str) -> str:
    used, chip = plan.memory, plan.chip
    fits = "fits" if plan.fits else "DOES NOT FIT"
    parts = ("parameters", "optimizer", "average", "reference", "inputs", "activations", "code")
    where = ", ".join(f"{name} {used[name] / GIB:.2f}" for name in parts if used[name])
    traffic = ", ".join(f"{kind} {count / 1e6:.0f}" for kind, count in plan.collectives.items())
    ratio = plan.flops / plan.model_flops
    lines = [
        f"stage {plan.stage}, {plan.budget} patches, batch {plan.batch_size:,} on {topology} "
        f"({plan.chips:,} chips)",
        f"  memory       {used['peak'] / GIB:.2f} of {chip.hbm_bytes / GIB:.0f} GiB: {fits} "
        f"(GiB: {where})",
        f"  FLOPs        {plan.flops / 1e12:.2f} T, {ratio:.2f} x the model's "
        f"{plan.model_flops / 1e12:.2f} T",
        f"  HBM          {plan.hbm_bytes / 1e9:.1f} GB",
        f"  collectives  MB: {traffic or 'none'}",
        f"  roofline     compute {plan.compute_seconds * 1e3:.1f} ms, HBM "
        f"{plan.hbm_seconds * 1e3:.1f} ms, links {plan.ici_seconds * 1e3:.1f} ms",
        f"  step         {plan.seconds * 1e3:.1f} ms estimated, MFU {plan.mfu:.3f}, "
        f"{plan.examples_per_second:.1f} examples/s per chip, {plan.days:.2f} days",
    ]
    if plan.untimed:
        lines.append(f"               ({plan.untimed} operations are not in the estimate)")
    lines.append("  slowest")
    lines += [
        f"    {(op.cycles or 0) / chip.clock_hz * 1e3:7.1f} ms  x{op.trips:<3} "
        f"{op.op_name.rsplit('/', 1)[-1] or op.name}  {_ours(op.source)}"
        for op in plan.slowest[:5]
    ]
    return "\n".join(lines)


def _ours(source: str) -> str:
    """A source line without the path of the installation."""
    return source.rpartition("siglip2_jax/")[2] if "siglip2_jax/" in source else source
