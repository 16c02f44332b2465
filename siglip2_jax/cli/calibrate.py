"""`siglip2 calibrate`: probabilities and a threshold fitted to a user's own examples."""

from __future__ import annotations

import argparse
import dataclasses
import sys

from siglip2_jax.cli.classify import read_labels
from siglip2_jax.cli.options import (
    add_model_options,
    add_template_option,
    any_path,
    load_model,
    local_path,
    output_file,
)
from siglip2_jax.cli.printing import print_json


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "calibrate",
        help="fit probabilities and a threshold to your own examples",
        description="Fits temperature and bias, and a threshold for a wanted precision or recall, "
        "to examples: images with all labels that hold for them, or pairs of image and text with a "
        "verdict. Says what so many examples can claim, and writes a JSON file for `classify` and "
        "`Embedder.probabilities`.",
        epilog="example: siglip2 calibrate MODEL --examples labelled.csv --precision 0.9 "
        "--out labels.calibration.json",
    )
    add_model_options(parser)
    parser.add_argument(
        "--examples",
        metavar="PATH",
        type=local_path,
        required=True,
        help="directory with a folder of images for each label; or rows of `image` and `label`, or "
        "of `image`, `text` and `match`, in a .csv or .jsonl file",
    )
    parser.add_argument(
        "--labels", help="all labels of the set, separated by commas (default: those of PATH)"
    )
    parser.add_argument("--labels-file", type=any_path, help="text file with one label per line")
    add_template_option(parser, "the label as it is")
    goal = parser.add_mutually_exclusive_group()
    goal.add_argument(
        "--precision", type=float, metavar="P", help="wanted share of accepted pairs that match"
    )
    goal.add_argument(
        "--recall", type=float, metavar="R", help="wanted share of matches that are accepted"
    )
    parser.add_argument("--out", type=output_file, required=True, help="JSON file to write")
    parser.add_argument(
        "--plot",
        type=output_file,
        metavar="FILE.svg",
        help="reliability plot to write (extra `report`)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Fits, writes and prints a calibration."""
    from siglip2_jax.evals.calibrate import fit
    from siglip2_jax.evals.calibration_examples import read_examples, score
    from siglip2_jax.inference.calibration import Calibration

    labels = read_labels(args) if args.labels or args.labels_file else ()
    judged = read_examples(args.examples, labels)
    if not judged.labels and (labels or args.templates):
        raise ValueError(
            f"{args.examples} has pairs of images and texts, to which labels and templates do not "
            "apply; leave out --labels and --templates"
        )
    model = load_model(args)
    templates = tuple(args.templates or ["{}"]) if judged.labels else ()
    pairs, unreadable = score(model, judged, templates, max_num_patches=args.max_num_patches)
    wanted = None
    if args.precision is not None:
        wanted = ("precision", args.precision)
    elif args.recall is not None:
        wanted = ("recall", args.recall)
    matches = int(pairs.matches.sum())
    calibration = Calibration(
        **fit(pairs, wanted)._asdict(),
        labels=tuple(judged.texts) if judged.labels else (),
        templates=templates,
        images=len(judged.images) - unreadable,
        matches=matches,
        others=len(pairs.matches) - matches,
        model=model.identity(),
        max_num_patches=args.max_num_patches,
    )
    if args.plot:
        from siglip2_jax.evals.reliability_plot import draw_reliability

        draw_reliability(pairs, calibration, (model.temperature, model.bias), args.plot)
    calibration.write(args.out)
    for warning in calibration.warnings:
        print(f"siglip2: {warning}", file=sys.stderr)
    if args.json:
        print_json({"out": str(args.out), **dataclasses.asdict(calibration)})
        return 0
    low, high = calibration.temperature_interval
    print(
        f"{matches} matches among {len(pairs.matches)} pairs of {calibration.images} images: "
        f"temperature {calibration.temperature:.1f} ({low:.1f} to {high:.1f}; the model's own is "
        f"{model.temperature:.1f}), bias {calibration.bias:.2f} (own {model.bias:.2f})"
    )
    if (goal := calibration.goal) and goal.threshold is not None:
        low, high = goal.interval
        print(
            f"{goal.metric} {goal.wanted:.0%}: accept from a probability of {goal.threshold:.3g} "
            f"on; {low:.0%} to {high:.0%} on other images, {goal.accepted} example pairs accepted"
        )
    print(f"wrote {args.out}")
    return 0
