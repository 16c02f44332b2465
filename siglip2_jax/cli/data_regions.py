"""`siglip2 data regions`: boxes with phrases for the rows of a folder."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from siglip2_jax.cli.options import local_path, positive
from siglip2_jax.cli.printing import print_json

if TYPE_CHECKING:
    from siglip2_jax.data.tools.annotators import Annotator


def add_parser(jobs: argparse._SubParsersAction) -> None:
    """Adds the job."""
    parser = jobs.add_parser(
        "regions",
        help="add boxes with phrases to the rows of a folder, for the captioning decoder",
        description="Writes the rows of a folder's .jsonl with `regions` added: annotated boxes, "
        "or boxes of a detector for the n-grams of the captions or for a list of categories. Put "
        "the file beside images/ and read it with Folder(DIR, captions=FILE). An interrupted job "
        "continues. Rows without a readable image are left out and listed in a file of errors.",
        epilog="example: siglip2 data regions --folder /data/pairs --detector owlv2 "
        "--out /data/pairs/regions.jsonl",
    )
    parser.add_argument(
        "--folder", metavar="DIR", required=True, help="folder with captions.jsonl and images/"
    )
    parser.add_argument(
        "--captions",
        metavar="NAME",
        type=local_path,
        default="captions.jsonl",
        help="name of the folder's .jsonl of captions (default: captions.jsonl)",
    )
    parser.add_argument(
        "--template", help='template of captions made from fields, such as "a photo of a {name}"'
    )
    parser.add_argument(
        "--out",
        metavar="FILE.jsonl",
        type=local_path,
        required=True,
        help="file to write the rows to",
    )
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument(
        "--annotations",
        action="store_true",
        help="use the annotated boxes of the rows, in the format of COCO",
    )
    kind.add_argument(
        "--detector", choices=("owlv2",), help="detector of boxes; needs the extra `regions`"
    )
    parser.add_argument(
        "--model",
        metavar="REPO",
        type=local_path,
        help="weights of the detector: a Hugging Face id or a directory",
    )
    parser.add_argument(
        "--categories",
        metavar="FILE",
        type=local_path,
        help="text file with one object category per line, for the detector to find in every image "
        "instead of the n-grams of its captions",
    )
    parser.add_argument(
        "--device", help="device of the detector (default: cuda if available, else cpu)"
    )
    parser.add_argument(
        "--min-score",
        type=_share,
        default=0.1,
        help="smallest score of a region to keep, 0 to 1 (default: 0.1)",
    )
    parser.add_argument(
        "--max-per-image",
        metavar="N",
        type=positive,
        help="number of best regions to keep per image (default: all)",
    )
    parser.add_argument("--json", action="store_true", help="print a summary as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Adds regions; exit code 1 if no row could be used."""
    import dataclasses

    from siglip2_jax.data.sources import Folder
    from siglip2_jax.data.tools.annotate import Limits, annotate
    from siglip2_jax.progress import progress

    source = Folder(args.folder, captions=args.captions, template=args.template)
    limits = Limits(args.min_score, args.max_per_image)
    source.open()  # missing files are reported before a detector is loaded
    with progress("regions") as show:
        result = annotate(source, args.out, _annotator(args), limits, progress=show)
    if args.json:
        print_json(dataclasses.asdict(result))
    else:
        left_out = f", {result.skipped} left out" if result.skipped else ""
        print(f"{args.out}: {result.rows} rows with {result.regions} regions{left_out}")
    return 0 if result.rows else 1


def _annotator(args: argparse.Namespace) -> Annotator:
    from siglip2_jax.data.tools.annotators import Annotations, Detections

    if args.annotations:
        if (args.model, args.device, args.categories) != (None, None, None):
            raise ValueError(
                "--model, --device and --categories are of --detector, not of --annotations"
            )
        return Annotations()
    categories = () if args.categories is None else _categories(args.categories)
    from siglip2_jax.data.tools.owlv2 import DEFAULT_REPO, Owlv2Detector

    repo = args.model or DEFAULT_REPO
    detector = Owlv2Detector(repo, args.device, threshold=args.min_score)
    return Detections(detector, categories=categories)


def _categories(path: str) -> tuple[str, ...]:
    """The lines of a file, each once."""
    from siglip2_jax.data.text import read_lines

    if categories := tuple(dict.fromkeys(line.strip() for line in read_lines(path))):
        return categories
    raise ValueError(f"{path} is empty; expected one object category per line")


def _share(text: str) -> float:
    """An argparse type: a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value
