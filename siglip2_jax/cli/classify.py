"""`siglip2 classify`: zero-shot labels for images."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from siglip2_jax.cli.options import (
    add_model_options,
    add_template_option,
    any_path,
    load_model,
    positive,
)
from siglip2_jax.cli.printing import print_json

if TYPE_CHECKING:
    from siglip2_jax.inference import Calibration


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
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        type=any_path,
        help="result of `siglip2 calibrate`: its labels, templates, probabilities and threshold",
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


def _read_calibration(args: argparse.Namespace) -> Calibration | None:
    """The calibration of the options, with the token budget that it was fitted at."""
    from siglip2_jax.inference import read_calibration

    if not args.calibration:
        return None
    calibration = read_calibration(args.calibration)
    if not calibration.labels:
        raise ValueError(
            f"{args.calibration} was fitted to pairs of images and texts, not to labels; fit one "
            "to examples with labels"
        )
    if args.labels or args.labels_file or args.templates:
        raise ValueError(
            f"{args.calibration} holds for its own labels and templates; leave out --labels, "
            "--labels-file and --templates, or --calibration"
        )
    args.max_num_patches = calibration.max_num_patches
    return calibration


def run(args: argparse.Namespace) -> int:
    """Prints labels with probabilities; exit code 1 if no image could be read."""
    from siglip2_jax.data.files import find_images
    from siglip2_jax.evals.prompts import embed_labels, name_templates
    from siglip2_jax.preprocess.decode import ImageError

    calibration = _read_calibration(args)
    labels = list(calibration.labels) if calibration else read_labels(args)
    images = find_images(args.images)
    model = load_model(args)
    if calibration:
        calibration.check(model.identity(), str(args.calibration))
    templates = calibration.templates if calibration else args.templates or ["{}"]
    threshold = calibration.threshold if calibration else 0.0
    texts = embed_labels(model, labels, templates)
    rows = model.stream_images(images, args.max_num_patches, args.batch_size)
    results, failed = [], 0
    for image, row in zip(images, rows, strict=True):
        if isinstance(row, ImageError):
            print(f"siglip2: skipped: {row}", file=sys.stderr)
            results.append({"image": image, "error": str(row)})
            failed += 1
            continue
        probability = model.probabilities(row[None], texts, calibration=calibration)[0]
        order = sorted(range(len(labels)), key=lambda i: -probability[i])
        scores = {labels[i]: float(probability[i]) for i in order}
        result = {"image": image, "label": labels[order[0]], "scores": scores}
        accepted = {label: score for label, score in scores.items() if score >= threshold}
        results.append(result | ({"accepted": list(accepted)} if calibration else {}))
        if not args.json:
            best = ", ".join(f"{k} {v:.2%}" for k, v in list(accepted.items())[: args.top])
            print(f"{image}: {best or f'no label from {threshold:.3g} on'}", flush=True)
    if args.json:
        settings: dict[str, object] = {
            "preproc": model.preprocess.mode,
            "text_norm": model.text_norm,
            "weights": model.weights,
        }
        settings["templates"] = name_templates(templates)
        if calibration:
            settings["threshold"] = threshold
        print_json({**settings, "results": results})
    return int(failed == len(images))
