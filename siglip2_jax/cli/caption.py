"""`siglip2 caption`: captions, boxes for a phrase, phrases for a box, by a run's decoder."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from siglip2_jax.cli.options import add_model_options, load_decoder, output_file, positive
from siglip2_jax.cli.printing import print_json

if TYPE_CHECKING:
    from siglip2_jax.inference import Answer, GenerationConfig, PixelBox

COLOUR = "#ff2d55"


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "caption",
        help="write captions of images, boxes for phrases, phrases for boxes",
        description="Writes captions of images with a trained decoder. SOURCE is the workdir of a "
        "run that trained one, or one of its checkpoints; released checkpoints have no decoder. "
        "Boxes are left, top, right, bottom in pixels of the upright image.",
        epilog='example: siglip2 caption WORKDIR dog.jpg --locate "a red dog" --draw found.png',
    )
    add_model_options(parser)
    parser.add_argument(
        "images", metavar="IMAGE", nargs="+", help="image files, directories or globs"
    )
    parser.add_argument(
        "--head", help="name of the decoder's objective, for a run with several decoders"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--locate", metavar="PHRASE", help="phrase to find the box of")
    what.add_argument(
        "--describe",
        metavar="BOX",
        type=box,
        help="box to describe, as LEFT,TOP,RIGHT,BOTTOM in pixels",
    )
    parser.add_argument(
        "--method",
        choices=("greedy", "beam", "sample"),
        default="greedy",
        help="decoding by the likeliest token, beam search, or sampling (default: greedy)",
    )
    parser.add_argument(
        "--beams", type=positive, help="number of beams of --method beam (default: 4)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        help="temperature of --method sample; lower is nearer to greedy (default: 1)",
    )
    parser.add_argument("--seed", type=int, help="random seed of --method sample (default: 0)")
    parser.add_argument(
        "--draw",
        metavar="OUT.png",
        type=output_file,
        help="file to write the image with its box to; needs a single IMAGE",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def box(text: str) -> PixelBox:
    """An argparse type: left, top, right and bottom, separated by commas."""
    try:
        left, top, right, bottom = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not LEFT,TOP,RIGHT,BOTTOM") from None
    return left, top, right, bottom


def run(args: argparse.Namespace) -> int:
    """Prints what is written about each image; exit code 1 if no image could be read."""
    from siglip2_jax.data.files import find_images
    from siglip2_jax.inference import Query
    from siglip2_jax.preprocess.decode import ImageError

    images = find_images(args.images)
    generation = _generation(args)
    _check_drawing(args, len(images))
    model = load_decoder(args, args.head)
    queries = (Query(image, args.locate, args.describe) for image in images)
    answers = model.stream(queries, generation, args.max_num_patches, args.batch_size)
    results, failed = [], 0
    for image, answer in zip(images, answers, strict=True):
        if isinstance(answer, ImageError):
            print(f"siglip2: skipped: {answer}", file=sys.stderr)
            results.append({"image": image, "error": str(answer)})
            failed += 1
            continue
        results.append({"image": image, **_described(answer, args)})
        if not args.json:
            print(f"{image}: {_shown(answer, args)}", flush=True)
        if args.draw:
            _draw(image, answer, args)
    if args.json:
        settings = {"preproc": model.embedder.preprocess.mode, "method": args.method}
        print_json({**settings, "results": results})
    return int(failed == len(images))


def _generation(args: argparse.Namespace) -> GenerationConfig:
    """Decoding settings from the options; options that would have no effect are refused."""
    from siglip2_jax.inference import GenerationConfig

    belongs = {"beams": "beam", "temperature": "sample", "seed": "sample"}
    options = {name: value for name in belongs if (value := getattr(args, name)) is not None}
    for name in options:
        if belongs[name] != args.method:
            raise ValueError(f"--{name} has no effect without --method {belongs[name]}")
    return GenerationConfig(method=args.method, **options)


def _check_drawing(args: argparse.Namespace, count: int) -> None:
    if not args.draw:
        return
    if args.locate is None and args.describe is None:
        raise ValueError("--draw draws a box; ask for one with --locate, or give --describe one")
    if count != 1:
        raise ValueError(f"--draw takes one image, got {count}")
    if args.draw.suffix.lower() != ".png":
        raise ValueError(f"--draw writes PNG files, got {args.draw}; name one that ends in .png")


def _described(answer: Answer, args: argparse.Namespace) -> dict[str, Any]:
    if args.locate is None and args.describe is None:
        return {"caption": answer.text, "score": answer.score}
    return {"phrase": answer.text, "box": answer.box, "score": answer.score}


def _shown(answer: Answer, args: argparse.Namespace) -> str:
    if args.locate is None:
        return answer.text
    return ",".join(f"{side:.0f}" for side in answer.box) if answer.box else "no box"


def _draw(image: str, answer: Answer, args: argparse.Namespace) -> None:
    """Writes the image with its box, if there is one, and the phrase."""
    import io

    from PIL import ImageDraw

    from siglip2_jax.outputs import write_whole
    from siglip2_jax.preprocess.decode import decode

    decoded = decode(image, exif=not args.no_exif).copy()
    pen = ImageDraw.Draw(decoded)
    left, top, right, bottom = answer.box or (0, 0, 0, 0)
    text = answer.text if answer.box else f"{answer.text}: no box"
    size = max(10, decoded.height // 30)
    stroke = {"stroke_width": max(1, size // 10), "stroke_fill": "white"}
    pen.text((left + size // 4, top), text, fill=COLOUR, font_size=size, **stroke)
    if answer.box:
        corners = (left, top, max(left, right - 1), max(top, bottom - 1))
        pen.rectangle(corners, outline=COLOUR, width=max(1, min(decoded.size) // 150))
    data = io.BytesIO()
    decoded.save(data, "PNG")
    write_whole(args.draw, data.getvalue())
