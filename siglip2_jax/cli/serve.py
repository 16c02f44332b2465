"""`siglip2 serve`: a model over HTTP."""

from __future__ import annotations

import argparse
import os
from pathlib import PurePath
from typing import TYPE_CHECKING

from siglip2_jax.cli.options import (
    add_model_options,
    add_template_option,
    any_path,
    load_model,
    positive,
    use_all_devices,
)

if TYPE_CHECKING:
    from siglip2_jax.inference.calibration import Calibration
    from siglip2_jax.inference.embedder import Embedder
    from siglip2_jax.search import Index
    from siglip2_jax.serve.settings import LabelSet, Settings

_MISSING = "siglip2 serve needs the extra `serve` ({}); install it with: {}"
_WAY_OUT = "pip install 'siglip2_jax[serve]'"


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "serve",
        help="answer embeddings, labels and search over HTTP, as OpenAI's API does",
        description="Serves /v1/embeddings (as OpenAI's clients, Jina's, infinity's and vLLM's ask "
        "for them), /v1/classify, /v1/rerank, with --db /v1/search, and /health, /ready and "
        "/metrics. Ends on SIGTERM when all that was accepted is answered.",
        epilog="example: siglip2 serve MODEL --port 8000 --labels-file animals.txt",
    )
    add_model_options(parser, batches=False)
    _add_offer(parser)
    _add_limits(parser)
    parser.set_defaults(run=run)


def _add_offer(parser: argparse.ArgumentParser) -> None:
    offer = parser.add_argument_group("what is offered")
    offer.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)"
    )
    offer.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    offer.add_argument(
        "--model-name", metavar="NAME", help="name of the model (default: the end of SOURCE)"
    )
    offer.add_argument(
        "--max-num-patches",
        type=positive,
        nargs="+",
        default=[256],
        metavar="N",
        help="token budgets that requests may choose, the default first (default: 256)",
    )
    offer.add_argument(
        "--labels-file",
        action="append",
        default=[],
        metavar="FILE",
        help="text file with one label per line; requests use the set by the file's name without "
        "its ending; may be repeated",
    )
    add_template_option(parser, "the label as it is; of --labels-file")
    offer.add_argument(
        "--calibration",
        action="append",
        default=[],
        metavar="FILE",
        help="result of `siglip2 calibrate`: a set of labels with probabilities and a threshold, "
        "by the file's name; or, fitted to pairs, probabilities of any texts; may be repeated",
    )
    offer.add_argument("--db", metavar="DB", help="database of `siglip2 index` to search")


def _add_limits(parser: argparse.ArgumentParser) -> None:
    limits = parser.add_argument_group("limits and safety")
    limits.add_argument(
        "--batch-sizes",
        type=positive,
        nargs="+",
        default=[1, 8, 32],
        metavar="N",
        help="sizes that batches are filled up to (default: 1 8 32)",
    )
    for name, kind, default, text in (
        ("wait-ms", float, 5.0, "milliseconds that an item waits for others at most"),
        ("queue", positive, 4096, "items taken on at the same time; more get 429"),
        ("max-items", positive, 2048, "items of a request"),
        ("deadline", float, 60.0, "seconds for a request; then it gets 504"),
        ("max-request-mb", positive, 32, "size of a request"),
        ("max-image-mb", positive, 16, "size of an encoded image"),
        ("max-pixels", positive, 64_000_000, "pixels of an image"),
        ("grace", float, 1.0, "seconds after SIGTERM in which requests are still taken"),
    ):
        limits.add_argument(
            f"--{name}",
            type=kind,
            default=default,
            metavar="N",
            help=f"{text} (default: {default:g})",
        )
    limits.add_argument(
        "--decode-workers",
        type=positive,
        metavar="N",
        help="processes that decode images (default: one per core but one)",
    )
    limits.add_argument(
        "--api-keys",
        type=any_path,
        metavar="FILE",
        help="text file of keys, one a line, one of which requests must have (default: none)",
    )
    limits.add_argument(
        "--allow-url-hosts",
        metavar="HOST,…",
        default="",
        help="hosts that images may be fetched from by https (default: none)",
    )


def run(args: argparse.Namespace) -> int:
    """Serves until it is told to end."""
    import jax

    try:
        from siglip2_jax.serve.app import create_app
        from siglip2_jax.serve.run import listen, run
    except ImportError as error:
        raise ValueError(_MISSING.format(error, _WAY_OUT)) from error

    with listen(args.host, args.port) as sock:
        settings, model = _settings(args), load_model(args)
        _check_calibrations(model, settings)
        index = _open_database(args.db, model, settings) if args.db else None
        count = use_all_devices(model)
        app = create_app(model, settings, index)
        host, port = sock.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(
            f"serving {settings.model_name} at http://{shown}:{port} on {count} "
            f"{jax.default_backend()} device{'s' * (count > 1)}; /ready tells when it is warm",
            flush=True,
        )
        run(app, sock)
    return 0


def _open_database(uri: str, model: Embedder, settings: Settings) -> Index:
    from siglip2_jax.search import Index

    index = Index.open(uri, model)
    patches = index.database.settings["patches"]
    if model.preprocess.image_size is None and patches not in settings.budgets:
        raise ValueError(
            f"{uri} was made at {patches} patches, which is none of --max-num-patches; add it there"
        )
    return index


def _settings(args: argparse.Namespace) -> Settings:
    from siglip2_jax.data.text import read_lines
    from siglip2_jax.data.workers.machine import usable_cores
    from siglip2_jax.serve.settings import Settings

    sets, calibration = _label_sets(args)
    keys = tuple(key for key in read_lines(args.api_keys)) if args.api_keys else ()
    if args.api_keys and not keys:
        raise ValueError(f"{args.api_keys} holds no key; expected one a line")
    name = os.fspath(args.source).rstrip("/").rsplit("/", 1)[-1]
    return Settings(
        model_name=args.model_name or name.removesuffix(".npz"),
        budgets=tuple(dict.fromkeys(args.max_num_patches)),
        batch_sizes=tuple(args.batch_sizes),
        wait_ms=args.wait_ms,
        queue=args.queue,
        max_items=args.max_items,
        deadline=args.deadline,
        max_request_bytes=args.max_request_mb << 20,
        max_image_bytes=args.max_image_mb << 20,
        max_pixels=args.max_pixels,
        decode_workers=args.decode_workers or max(1, usable_cores() - 1),
        grace=args.grace,
        api_keys=keys,
        url_hosts=tuple(x.strip() for x in args.allow_url_hosts.split(",") if x.strip()),
        labels=sets,
        calibration=calibration,
    )


def _label_sets(args: argparse.Namespace) -> tuple[dict[str, LabelSet], Calibration | None]:
    """Sets of labels by name, and the calibration of other texts."""
    from siglip2_jax.data.text import read_lines
    from siglip2_jax.inference.calibration import read_calibration
    from siglip2_jax.serve.settings import LabelSet

    sets, any_text = {}, None
    for path in args.labels_file:
        labels = tuple(dict.fromkeys(filter(None, map(str.strip, read_lines(path)))))
        if not labels:
            raise ValueError(f"{path} holds no label; expected one a line")
        sets[PurePath(path).stem] = LabelSet(labels, tuple(args.templates or ["{}"]))
    for path in args.calibration:
        calibration = read_calibration(path)
        if calibration.labels:
            name = PurePath(path).stem.removesuffix(".calibration")
            sets[name] = LabelSet(calibration.labels, calibration.templates, calibration)
        elif any_text is not None:
            raise ValueError(
                f"{path} is the second calibration fitted to pairs of images and texts; give one"
            )
        else:
            any_text = calibration
    return sets, any_text


def _check_calibrations(model: Embedder, settings: Settings) -> None:
    """Refuses calibrations of another model."""
    if named := settings.calibrations:
        identity = model.identity()  # it reads all parameters
        for name, calibration in named.items():
            calibration.check(identity, name)
