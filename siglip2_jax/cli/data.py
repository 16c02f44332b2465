"""`siglip2 data`: index and pack data sets, add regions, look at batches, measure."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from siglip2_jax.cli import data_bench, data_index, data_pack, data_regions
from siglip2_jax.cli.options import add_config_options, load_run, output_file, positive
from siglip2_jax.cli.printing import print_json

if TYPE_CHECKING:
    from siglip2_jax.config import ResolvedStage
    from siglip2_jax.preprocess.tokenizer import Tokenizer


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the subcommand with its jobs."""
    parser = commands.add_parser(
        "data",
        help="index, pack, annotate, inspect and measure training data",
        epilog="example: siglip2 data inspect tiny --out batch.html",
    )
    jobs = parser.add_subparsers(title="jobs", metavar="JOB", required=True)
    data_index.add_parser(jobs)
    data_pack.add_parser(jobs)
    data_regions.add_parser(jobs)
    _add_inspect(jobs)
    data_bench.add_parser(jobs)


def _add_inspect(jobs: argparse._SubParsersAction) -> None:
    parser = jobs.add_parser(
        "inspect",
        help="draw a real batch of a config as a page of images",
        description="Draws the first examples of a stage as the model sees them, for each sequence "
        "length: the image of all patches with its grid, crops, boxes of a captioning decoder's "
        "targets, texts decoded from their ids, and statistics of lengths.",
        epilog="example: siglip2 data inspect tiny --out batch.html",
    )
    add_config_options(parser)
    parser.add_argument("--stage", help="name of the stage (default: the first)")
    parser.add_argument(
        "--count", type=positive, default=16, help="number of examples to draw (default: 16)"
    )
    parser.add_argument(
        "--out",
        type=output_file,
        default="siglip2_batch.html",
        help="page to write (default: siglip2_batch.html)",
    )
    parser.add_argument("--json", action="store_true", help="print the statistics as JSON")
    parser.set_defaults(run=inspect)


def inspect(args: argparse.Namespace) -> None:
    """Draws a batch."""
    from siglip2_jax.cli.batch_sheet import batch_sheet, lengths
    from siglip2_jax.outputs import write_whole
    from siglip2_jax.train.inputs import open_tokenizer

    config = load_run(args)
    stage = config.resolved[0] if args.stage is None else config.find_stage(args.stage)
    tokenizer = open_tokenizer(config)
    batches, texts = _batches(stage, tokenizer, args.count)
    pad_id = config.model.text.pad_id
    title = f"{args.config}, stage {stage.name}"
    targets = _targets(stage, batches)
    write_whole(args.out, batch_sheet(batches, texts, pad_id, title, targets))
    statistics = {str(budget): lengths(batch, pad_id) for budget, batch in batches.items()}
    if args.json:
        print_json({"sheet": str(args.out), "lengths": statistics})
        return
    for budget, numbers in statistics.items():
        print(
            f"{budget} patches: images use {numbers['patches']:.1f} "
            f"({numbers['patches_used']:.0%}), texts {numbers['text_tokens']:.1f} tokens, "
            f"{numbers['texts_full']:.0%} without padding"
        )
    print(f"wrote {args.out}")


def _batches(stage: ResolvedStage, tokenizer: Tokenizer, count: int):
    """The stage's first examples at each of its budgets, and their texts."""
    from contextlib import closing

    from siglip2_jax.data.lengths import StepSchedule
    from siglip2_jax.train.inputs import stage_pipeline

    batches, texts = {}, {}
    for budget in stage.lengths.budgets:
        pipeline = stage_pipeline(stage, tokenizer)
        with closing(pipeline.batches(StepSchedule(((budget, count),), 1))) as steps:
            batches[budget] = next(steps).batch
        texts[budget] = tokenizer.decode(batches[budget].text)
    return batches, texts


def _targets(stage: ResolvedStage, batches: dict):
    """Target sequences of the captioning decoder, decoded from their ids, for each example."""
    from siglip2_jax.data.targets import DecoderTargets

    transforms = stage.data.transforms
    made_by = [transform for transform in transforms if isinstance(transform, DecoderTargets)]
    if not made_by:
        return {}
    return {
        budget: [
            [made_by[-1].parse(ids) for ids in rows]
            for rows in zip(*batch.fields["targets"].values(), strict=True)
        ]
        for budget, batch in batches.items()
    }
