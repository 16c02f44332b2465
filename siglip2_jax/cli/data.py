"""`siglip2 data`: index tars, pack data sets, add regions, look at batches, measure."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from siglip2_jax.cli import data_bench, data_regions
from siglip2_jax.cli.options import add_config_options, load_run, local_path, output_file, positive
from siglip2_jax.cli.printing import print_json

if TYPE_CHECKING:
    from siglip2_jax.config import ResolvedStage
    from siglip2_jax.data.sources import Source
    from siglip2_jax.preprocess.tokenizer import Tokenizer


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the subcommand with its jobs."""
    parser = commands.add_parser(
        "data",
        help="index, pack, annotate, inspect and measure training data",
        epilog="example: siglip2 data inspect tiny --out batch.html",
    )
    jobs = parser.add_subparsers(title="jobs", metavar="JOB", required=True)
    _add_index(jobs)
    _add_pack(jobs)
    data_regions.add_parser(jobs)
    _add_inspect(jobs)
    data_bench.add_parser(jobs)


def _add_index(jobs: argparse._SubParsersAction) -> None:
    parser = jobs.add_parser(
        "index",
        help="write TAR.idx.npz beside webdataset tars",
        description="Writes TAR.idx.npz with the position of each sample, so that training reads "
        "it directly. Tars with an index that is up to date are skipped. Samples that cannot be "
        "used are counted.",
        epilog="example: siglip2 data index '/data/train/*.tar'",
    )
    parser.add_argument(
        "pattern", metavar="PATTERN", type=local_path, help="webdataset tar, or glob of tars"
    )
    parser.add_argument("--json", action="store_true", help="print a summary as JSON")
    parser.set_defaults(run=index)


def _add_pack(jobs: argparse._SubParsersAction) -> None:
    parser = jobs.add_parser(
        "pack",
        help="turn tars, a folder or a TFDS data set into ArrayRecord files",
        description="Writes ArrayRecord shards, which are read at random positions without an "
        "index. An interrupted job continues. Items without a readable image or a caption are "
        "left out and listed in a file of errors.",
        epilog="example: siglip2 data pack --tars '/data/cc/*.tar' --out /data/cc_records",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--tars",
        metavar="PATTERN",
        type=local_path,
        help="glob of webdataset tars, as img2dataset writes them",
    )
    source.add_argument("--folder", metavar="DIR", help="folder with captions.jsonl and images/")
    source.add_argument("--tfds", metavar="NAME", help="name of a prepared TFDS data set")
    parser.add_argument(
        "--captions",
        type=local_path,
        help="name of the folder's .jsonl of captions, or of the TFDS feature with captions",
    )
    parser.add_argument(
        "--template", help='template of captions made from fields, such as "a photo of a {name}"'
    )
    parser.add_argument(
        "--split", default="train", help="split of the TFDS data set (default: train)"
    )
    parser.add_argument(
        "--data-dir", type=local_path, help="directory in which the TFDS data set was prepared"
    )
    parser.add_argument(
        "--out", type=local_path, required=True, help="directory to write the shards to"
    )
    parser.add_argument(
        "--shard-size", type=positive, default=10_000, help="examples per shard (default: 10000)"
    )
    parser.add_argument("--json", action="store_true", help="print a summary as JSON")
    parser.set_defaults(run=pack)


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


def index(args: argparse.Namespace) -> None:
    """Indexes tars."""
    from collections import Counter

    from siglip2_jax.data.tars import index_tars
    from siglip2_jax.progress import progress

    with progress("indexing") as show:
        indices = index_tars(args.pattern, show)
    counts = Counter()
    for index in indices:
        counts.update({reason: remark.count for reason, remark in index.remarks.items()})
    summary = {
        "tars": len(indices),
        "damaged": sum(index.damage is not None for index in indices),
        "samples": sum(map(len, indices)),
        "left_out": sum(index.left_out for index in indices),
        "remarks": dict(counts),
    }
    _print(summary, args.json, "{tars} tars hold {samples} samples; {left_out} are left out")


def pack(args: argparse.Namespace) -> int:
    """Packs a data set; exit code 1 if nothing in it could be used."""
    import dataclasses

    from siglip2_jax.data.tools.pack import pack as write
    from siglip2_jax.progress import progress

    with progress("packing") as show:
        result = write(_source(args), args.out, shard_size=args.shard_size, progress=show)
    text = "{examples} examples in {shards} shards ({bytes} bytes); {skipped} were bad"
    if result.left_out:
        text += ", {left_out} in the files are no samples that can be used"
    _print(dataclasses.asdict(result), args.json, text)
    return 0 if result.examples else 1


def inspect(args: argparse.Namespace) -> None:
    """Draws a batch."""
    from siglip2_jax.cli.batch_sheet import batch_sheet, lengths
    from siglip2_jax.outputs import write_whole
    from siglip2_jax.train.inputs import open_tokenizer

    config = load_run(args)
    names = [stage.name for stage in config.stages]
    if args.stage is not None and args.stage not in names:
        raise ValueError(f"there is no stage {args.stage!r}; the config has {', '.join(names)}")
    stage = config.resolved[names.index(args.stage) if args.stage else 0]
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


def _source(args: argparse.Namespace) -> Source:
    from siglip2_jax.data.sources import Folder
    from siglip2_jax.data.tars import Tars
    from siglip2_jax.data.tfds import Tfds

    if args.tars is not None:
        return Tars(args.tars)
    if args.folder is not None:
        captions = args.captions or "captions.jsonl"
        return Folder(args.folder, captions=captions, template=args.template)
    captions = args.captions or "captions"
    return Tfds(
        args.tfds, args.split, directory=args.data_dir, captions=captions, template=args.template
    )


def _print(summary: dict, as_json: bool, text: str) -> None:
    if as_json:
        print_json(summary)
    else:
        print(text.format_map(summary))
