"""Options that several commands share, and loading a model by them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from siglip2_jax.cli.compilation import add_cache_option, use_cache

if TYPE_CHECKING:
    from etils import epath

    from siglip2_jax.checkpoints import Checkpoint
    from siglip2_jax.config import Origin, TrainConfig
    from siglip2_jax.inference import Captioner
    from siglip2_jax.inference.embedder import Embedder

SOURCE_HELP = (
    "official .npz, Hugging Face directory or repository id, checkpoint of this package, or "
    "workdir of a run; local or gs://"
)


def positive(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def price(text: str) -> float:
    """An argparse type: a price above 0."""
    try:
        dollars = float(text)
    except ValueError:
        dollars = 0.0
    if not 0 < dollars < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a price above 0")
    return dollars


def any_path(text: str) -> epath.Path:
    """An argparse type: a path, local or `gs://`."""
    from etils import epath  # slow to import

    return epath.Path(text)


def local_path(text: str) -> str:
    """An argparse type: a path on this machine."""
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a local path, and this option takes no other; use a local copy, or "
            "mount the bucket with gcsfuse"
        )
    return text


def stored_path(text: str) -> str:
    """An argparse type: a path on this machine or in a store."""
    if "://" in text and not text.startswith(("gs://", "s3://")):
        raise argparse.ArgumentTypeError(f"{text!r} is not a local path, nor on gs:// or s3://")
    return text


def _shard(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count) < 1e5):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a share such as 3/16: a number from 0 up, and how many there are"
        )
    return int(number), int(count)


def add_shard_option(
    parser: argparse._ActionsContainer,
    *,
    default: tuple[int, int] | None = (0, 1),
    what: str = "files",
    otherwise: str = "all",
) -> None:
    """Adds the share of a job that is done in several places.

    Args:
      parser: gets the option.
      default: the share where none is chosen.
      what: of what it is a share, for the help.
      otherwise: what `default` means, for the help.
    """
    parser.add_argument(
        "--shard",
        metavar="I/N",
        type=_shard,
        default=default,
        help=f"share of the {what} that is done here, 0/N to (N-1)/N, on any machines at the same "
        f"time (default: {otherwise})",
    )


def output_file(text: str) -> epath.Path:
    """An argparse type: a file to write, local or `gs://`, checked to be writable."""
    from siglip2_jax.outputs import check_output

    try:
        check_output(text)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{error.filename}: {error.strerror}") from None
    return any_path(text)


def _templates(text: str) -> tuple[str, ...]:
    from siglip2_jax.evals.prompts import choose_templates

    try:
        return choose_templates(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_template_option(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds the prompts that classes are put in; None where none are chosen.

    Args:
      parser: gets the option.
      default: what happens then, for the help.
    """
    parser.add_argument(
        "--templates",
        type=_templates,
        action="extend",
        metavar="NAME|PROMPT",
        help="prompts of each label, averaged as embeddings: openai (80 prompts), clip_paper "
        '(openai and the bare label), or a prompt such as "a photo of a {}"; may be repeated '
        f"(default: {default})",
    )


def add_stage_option(parser: argparse.ArgumentParser) -> None:
    """Adds the option that selects a stage's checkpoint of a workdir."""
    parser.add_argument(
        "--stage",
        metavar="NAME",
        help="stage of a run whose newest checkpoint is read, if SOURCE is a workdir "
        "(default: the newest checkpoint of all stages)",
    )


def add_model_options(
    parser: argparse.ArgumentParser, *, required: bool = True, batches: bool = True
) -> None:
    """Adds SOURCE and everything that decides how it is loaded.

    Args:
      parser: gets the options.
      required: whether SOURCE must be given.
      batches: whether to add the token budget and the batch size, too.
    """
    parser.add_argument("source", metavar="SOURCE", help=SOURCE_HELP).required = required
    add_stage_option(parser)
    parser.add_argument(
        "--tokenizer",
        help="tokenizer.model, tokenizer.json or a directory (default: beside SOURCE)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="precision of matrix products (default: float32)",
    )
    parser.add_argument(
        "--weights",
        choices=("float32", "bfloat16", "int8"),
        default="float32",
        help="numbers that the weights are kept in: bfloat16 takes half the memory, int8 a quarter "
        "(default: float32)",
    )
    parser.add_argument(
        "--preproc",
        choices=("reference", "hf"),
        help="image preprocessing, like the official code (reference) or like transformers (hf) "
        "(default: recorded in the checkpoint, else reference)",
    )
    parser.add_argument(
        "--text-norm",
        choices=("reference", "unicode_lower", "canonicalize", "none"),
        help="text normalisation (default: recorded in the checkpoint, else reference)",
    )
    parser.add_argument(
        "--no-exif",
        action="store_true",
        help="do not turn images upright by their EXIF tag",
    )
    add_cache_option(parser)
    if batches:
        parser.add_argument(
            "--max-num-patches",
            type=positive,
            default=256,
            help="token budget of an image, for NaFlex models (default: 256)",
        )
        parser.add_argument(
            "--batch-size",
            type=positive,
            default=32,
            help="images or texts per program call (default: 32)",
        )


def open_checkpoint(args: argparse.Namespace) -> Checkpoint:
    """Opens the checkpoint that `add_model_options` described."""
    from siglip2_jax import checkpoints

    return checkpoints.read(args.source, args.stage)


def load_model(args: argparse.Namespace, checkpoint: Checkpoint | None = None) -> Embedder:
    """Loads the model that `add_model_options` described, from its checkpoint if that is open."""
    from siglip2_jax.inference import load

    use_cache(args)
    return load(
        checkpoint or open_checkpoint(args),
        args.tokenizer,
        dtype=args.dtype,
        weights=args.weights,
        preproc=args.preproc,
        text_norm=args.text_norm,
        exif=not args.no_exif,
    )


def use_all_devices(model: Embedder) -> int:
    """Runs a model's batches on all devices of this process; gives their number."""
    import jax

    devices = jax.local_devices()
    if len(devices) > 1:
        model.replicate_over(devices)
    return len(devices)


def load_decoder(args: argparse.Namespace, head: str | None = None) -> Captioner:
    """Loads the same with the decoder that its run has trained under the name `head`."""
    from siglip2_jax.inference import load_captioner

    use_cache(args)
    return load_captioner(
        args.source,
        args.tokenizer,
        stage=args.stage,
        head=head,
        dtype=args.dtype,
        weights=args.weights,
        preproc=args.preproc,
        text_norm=args.text_norm,
        exif=not args.no_exif,
    )


def add_host_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options by which the processes of a run connect."""
    hosts = parser.add_argument_group("hosts that do not find each other by themselves")
    hosts.add_argument("--coordinator", metavar="HOST:PORT", help="network address of process 0")
    hosts.add_argument("--num-processes", type=int, help="number of processes of the run")
    hosts.add_argument("--process-id", type=int, help="number of this process, from 0")
    hosts.add_argument(
        "--no-distributed", action="store_true", help="run this process alone, even on a slice"
    )


def add_config_options(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds CONFIG and the changes to it."""
    parser.add_argument(
        "config",
        metavar="CONFIG",
        nargs=None if required else "?",
        help="name of a recipe (see `siglip2 configs`), Python file with a config(), "
        "package.module:function, or config.json of a run",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="change a field, such as stages.main.optim.peak_lr=3e-4, or give an argument to "
        "config(), such as scale=1e-6; may be repeated",
    )


def find_run(args: argparse.Namespace) -> Origin:
    """The origin of the config that `add_config_options` described."""
    from siglip2_jax.config import find_origin
    from siglip2_jax.recipes import locate

    return find_origin(locate(args.config), args.set)


def load_run(args: argparse.Namespace) -> TrainConfig:
    """The config that `add_config_options` described."""
    from siglip2_jax.config import load_config

    return load_config(*find_run(args))
