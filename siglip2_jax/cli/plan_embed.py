"""`siglip2 plan --embed`: rates and cost of embedding images on a TPU slice."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from siglip2_jax.cli.options import positive
from siglip2_jax.cli.printing import print_json

if TYPE_CHECKING:
    from siglip2_jax.models.config import ModelConfig, Variant
    from siglip2_jax.planner.embed import EmbedPlan, Job
    from siglip2_jax.planner.host_input import Assumptions
    from siglip2_jax.planner.results import Results

GIB = 2**30
MILLION = 1_000_000
_ONLY = ("max_num_patches", "batch_size", "dtype", "items", "host_cores")
_OTHERS = ("config", "set", "stage", "budget", "largest_batch", "search", "batches", "remats")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what decides a plan of embedding."""
    group = parser.add_argument_group(
        "embedding",
        "Plans `siglip2 embed` on every host of the slice in place of a training step.",
    )
    group.add_argument(
        "--embed",
        metavar="SOURCE",
        help='name of a release, such as "B/16 256", b16_256 or google/siglip2-base-patch16-256 '
        "(nothing is downloaded), or a checkpoint, whose sizes are read",
    )
    group.add_argument(
        "--max-num-patches",
        type=positive,
        help="token budget of an image, for NaFlex models (default: 256)",
    )
    group.add_argument(
        "--batch-size",
        type=positive,
        help="images per chip in a batch (default: the fastest of a few)",
    )
    group.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="precision of matrix products (default: bfloat16)",
    )
    group.add_argument(
        "--items", type=positive, help="number of images to embed (default: one million)"
    )
    group.add_argument(
        "--host-cores",
        type=positive,
        metavar="N",
        help="number of CPU cores of a host, which may limit the rate (default: as many as needed)",
    )


def check_options(args: argparse.Namespace) -> None:
    """Refuses options of the other kind of plan.

    Raises:
      ValueError: there are some, or there is neither a config nor a source.
    """
    if args.embed is None:
        if args.config is None:
            raise ValueError("there is nothing to plan; give a CONFIG, or --embed SOURCE")
        wrong, way_out = _set(args, _ONLY), "add --embed SOURCE in place of CONFIG"
    else:
        wrong, way_out = _set(args, _OTHERS), "leave it out"
        wrong += ["--slices"] if args.slices > 1 else []
    if wrong:
        kind = "training" if args.embed is None else "embedding (--embed)"
        raise ValueError(f"a plan of {kind} takes no {' and no '.join(wrong)}; {way_out}")


def _set(args: argparse.Namespace, names: tuple[str, ...]) -> list[str]:
    names = tuple(name for name in names if getattr(args, name))
    return ["CONFIG" if name == "config" else "--" + name.replace("_", "-") for name in names]


def run(args: argparse.Namespace, assumed: Assumptions, results: Results) -> int:
    """Compiles and prints; 1 if no batch fits."""
    import dataclasses

    from siglip2_jax.planner.calibration import CALIBRATION
    from siglip2_jax.planner.embed import batch_sizes, fastest, host_mesh, plan_embed, plan_job
    from siglip2_jax.planner.estimate import DoesNotFit
    from siglip2_jax.progress import progress

    name, config = find_sizes(args.embed)
    mesh, hosts = host_mesh(args.topology)
    budget, dtype = args.max_num_patches or 256, args.dtype or "bfloat16"
    patches = config.vision.num_patches or budget
    sizes = [args.batch_size] if args.batch_size else batch_sizes(patches)
    plans = []
    with progress("compiling") as show:
        for i, size in enumerate(sizes):
            show(i, len(sizes), f"batch {size}")
            try:
                plan = plan_embed(
                    config,
                    mesh,
                    max_num_patches=budget,
                    batch_size=size,
                    dtype=dtype,
                    results=results,
                )
            except DoesNotFit:
                if not plans:
                    raise
                break  # nor does a larger one
            plans.append(plan)
            show(i + 1, len(sizes))
    best = fastest(plans)
    jobs = [
        plan_job(
            best,
            hosts,
            assumed,
            items=items,
            dollars_per_chip_hour=args.price,
            host_cores=args.host_cores,
        )
        for items in dict.fromkeys((MILLION, args.items or MILLION))
        if best is not None
    ]
    if args.json:
        print_json(
            {
                "model": name,
                "topology": args.topology,
                "hosts": hosts,
                "dtype": dtype,
                "calibration": CALIBRATION.to_json(),
                "batches": [plan.to_json() | {"best": plan is best} for plan in plans],
                "assumed": dataclasses.asdict(assumed),
                "jobs": [dataclasses.asdict(job) for job in jobs],
            }
        )
    else:
        where = f"{args.topology} ({hosts:,} x host of {mesh.size} chips)"
        title = f"{name}, {patches:,} patches, {dtype}, on {where}"
        print(report(title, plans, best, jobs, assumed), CALIBRATION.note, sep="\n")
    return 0 if jobs else 1


def find_sizes(source: str) -> tuple[str, ModelConfig]:
    """Name and sizes of a release, or of a checkpoint.

    Raises:
      ValueError: several releases have this name, or the source is no checkpoint.
      OSError: there is no such source.
    """
    from siglip2_jax import checkpoints
    from siglip2_jax.models.config import RELEASES, SIGLIP1_RELEASES

    if not os.path.exists(source):
        words = _words(source)
        named = [x for x in RELEASES + SIGLIP1_RELEASES if words in _names(x)]
        releases = named or [x for x in RELEASES if words and words <= _words(x.name)]
        if len(releases) == 1:
            return releases[0].name, releases[0].config
        if releases:
            names = ", ".join(x.name for x in releases)
            raise ValueError(f"--embed is {source!r}, which may be {names}; name one of them")
    return source, checkpoints.read(source).config


def _names(release: Variant) -> list[set[str]]:
    repository = release.hf.removeprefix("google/")
    return [_words(name) for name in (release.name, release.npz, release.hf, repository)]


def _words(name: str) -> set[str]:
    """Parts of a name, however they are joined: "B/16 256" and "b16_256" have the same."""
    return set(re.findall(r"so400m|[a-z]+|\d+", name.lower()))


def report(
    title: str,
    plans: Sequence[EmbedPlan],
    best: EmbedPlan | None,
    jobs: Sequence[Job],
    assumed: Assumptions,
) -> str:
    """The plan as lines, without a last newline.

    Args:
      title: what is planned, in words.
      plans: of all batch sizes tried.
      best: the one that is used; None where none fits.
      jobs: with that; none where nothing fits.
      assumed: by which they were computed.
    """
    lines = [title, "  images a chip     GiB       ms  images/s a chip    MFU"]
    for plan in plans:
        lines.append(
            f"{'*' if plan is best else ' '} {plan.batch_size // plan.chips:>13,}  "
            f"{plan.memory['peak'] / GIB:6.2f}  {plan.seconds * 1e3:7.1f}  "
            f"{plan.examples_per_second:15,.0f}  {plan.mfu:5.3f}"
            + ("" if plan.fits else "  DOES NOT FIT")
        )
    lines += _host(jobs[0], assumed) if jobs else ["no batch fits; try a smaller --batch-size"]
    return "\n".join(lines + [_cost(job) for job in jobs])


def _host(job: Job, assumed: Assumptions) -> list[str]:
    indent = " " * 9
    return [
        f"  host   {job.images_per_second:,.0f} images/s; {job.chips // job.hosts} chips need "
        f"{job.cores:,} CPU cores at {assumed.images_per_core_second:g} images/s a core",
        f"{indent}reads {job.bytes_per_second / 1e6:,.0f} MB/s at {assumed.image_bytes / 1e3:g} KB "
        f"an image, {job.requests_per_second:,.1f} requests/s of {assumed.images_per_request:g} "
        "images",
        f"{indent}sends {job.transfer_bytes_per_second / 1e9:,.1f} GB/s of patches to its chips",
    ]


def _cost(job: Job) -> str:
    chips = "" if job.dollars is None else f", {job.dollars:,.2f} dollars"
    return (
        f"  {job.items:,} images: {job.hours:,.3g} hours on {job.chips:,} chips, "
        f"{job.chip_hours:,.3g} chip-hours{chips}; {job.request_dollars:,.4f} dollars of requests "
        "from a store"
    )
