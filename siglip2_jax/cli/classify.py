"""`siglip2 classify`: zero-shot labels for images."""

from __future__ import annotations

import argparse
import sys

from siglip2_jax.cli.options import (
    add_model_options,
    add_template_option,
    any_path,
    load_model,
    positive,
)
from siglip2_jax.cli.printing import print_json


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "classify",
        help="label images zero-shot",
        epilog='example: siglip2 classify MODEL cat.jpg dog.jpg --labels "a cat,a dog"',
    )
    add_model_options(parser)
    parser.add_argument(
        "images", metavar="IMAGE", nargs="+", help="image files, directories or globs"
    )
    parser.add_argument("--labels", help="labels to choose from, separated by commas")
    parser.add_argument("--labels-file", type=any_path, help="text file with one label per line")
    add_template_option(parser, "the label as it is")
    parser.add_argument(
        "--top", type=positive, default=5, help="number of labels to print (default: 5)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def read_labels(args: argparse.Namespace) -> list[str]:
    """The labels of the options, in order, without repetitions.

    Raises:
      ValueError: there are none.
    """
    from siglip2_jax.data.text import read_lines

    labels = read_lines(args.labels_file) if args.labels_file else []
    labels += args.labels.split(",") if args.labels else []
    labels = list(dict.fromkeys(label.strip() for label in labels if label.strip()))
    if not labels:
        raise ValueError('no labels were given; pass --labels "a cat,a dog" or --labels-file FILE')
    return labels


def run(args: argparse.Namespace) -> int:
    """Prints labels with probabilities; exit code 1 if no image could be read."""
    from siglip2_jax.data.files import find_images
    from siglip2_jax.evals.prompts import embed_labels, name_templates
    from siglip2_jax.preprocess.decode import ImageError

    labels = read_labels(args)
    images = find_images(args.images)
    model = load_model(args)
    templates = args.templates or ["{}"]
    texts = embed_labels(model, labels, templates)
    rows = model.stream_images(images, args.max_num_patches, args.batch_size)
    results, failed = [], 0
    for image, row in zip(images, rows, strict=True):
        if isinstance(row, ImageError):
            print(f"siglip2: skipped: {row}", file=sys.stderr)
            results.append({"image": image, "error": str(row)})
            failed += 1
            continue
        probability = model.probabilities(row[None], texts)[0]
        order = sorted(range(len(labels)), key=lambda i: -probability[i])
        scores = {labels[i]: float(probability[i]) for i in order}
        results.append({"image": image, "label": labels[order[0]], "scores": scores})
        if not args.json:
            best = ", ".join(f"{k} {v:.2%}" for k, v in list(scores.items())[: args.top])
            print(f"{image}: {best}", flush=True)
    if args.json:
        settings = {"preproc": model.preprocess.mode, "text_norm": model.text_norm}
        settings["templates"] = name_templates(templates)
        print_json({**settings, "results": results})
    return int(failed == len(images))
