"""`siglip2 verify`: checks that a checkpoint is complete and gives the published logits."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from siglip2_jax.cli.compilation import add_cache_option, use_cache
from siglip2_jax.cli.options import SOURCE_HELP, add_stage_option
from siglip2_jax.cli.printing import print_json

if TYPE_CHECKING:
    from siglip2_jax.inference.embedder import Embedder


class Check(NamedTuple):
    """Result of a check: `passed` is None where it does not apply."""

    name: str
    passed: bool | None
    detail: str


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "verify",
        help="check a checkpoint: structure, finite values, published logits",
        description="With a released NaFlex checkpoint and a tokenizer, compares 21 logits with "
        "the published ones. With any other checkpoint, checks structure and finite values. The "
        "exit code is 1 if a check fails.",
        epilog="example: siglip2 verify siglip2_b16_naflex.npz --tokenizer tokenizer.model",
    )
    parser.add_argument("source", metavar="SOURCE", help=SOURCE_HELP)
    add_stage_option(parser)
    parser.add_argument(
        "--tokenizer",
        help="tokenizer.model, tokenizer.json or a directory (default: beside SOURCE)",
    )
    parser.add_argument(
        "--no-golden",
        action="store_true",
        help="skip the comparison with published logits, for weights trained from a release",
    )
    add_cache_option(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints each check; exit code 1 if one fails."""
    use_cache(args)
    checks = []
    for check in find(args.source, args.tokenizer, args.stage, golden=not args.no_golden):
        checks.append(check)
        if not args.json:
            mark = {True: "ok    ", False: "FAILED", None: "-     "}[check.passed]
            print(f"{mark} {check.name}: {check.detail}", flush=True)
    if args.json:
        print_json([check._asdict() for check in checks])
    return int(any(check.passed is False for check in checks))


def find(
    source: str, tokenizer: str | None, stage: str | None, *, golden: bool = True
) -> Iterator[Check]:
    """All checks, in order. Shapes and finiteness are checked while loading."""
    from siglip2_jax.checkpoints import NonFiniteError
    from siglip2_jax.inference import load
    from siglip2_jax.models.siglip2 import flatten

    try:
        # The published logits were made with transformers' preprocessing.
        model = load(source, tokenizer, stage=stage, preproc="hf")
    except NonFiniteError as error:
        yield Check("finite parameters", False, str(error))
        return
    variant = model.variant
    yield Check("structure", True, variant.name if variant else "not a released size")
    yield Check("finite parameters", True, f"{len(flatten(model.params))} tensors")
    yield Check(
        "temperature and bias",
        bool(0 < model.temperature < 1e4 and abs(model.bias) < 1e3),
        f"exp(t) = {model.temperature:.4g}, b = {model.bias:.4g}",
    )
    yield _forward(model)
    yield _golden(model) if golden else Check("published logits", None, "skipped by --no-golden")


def _forward(model: Embedder) -> Check:
    import numpy as np

    from siglip2_jax.cli.golden import IMAGE_SIZES, draw

    images = model.embed_images([draw(*size) for size in IMAGE_SIZES], on_error="raise")
    text = model.config.text
    ids = np.random.default_rng(0).integers(0, text.vocab_size, (3, text.length), np.int32)
    norms = [np.linalg.norm(x, axis=1) for x in (images, model.embed_tokens(ids))]
    error = float(np.max(np.abs(np.concatenate(norms) - 1)))  # NaN fails the comparison below
    return Check("unit embeddings", error < 1e-5, f"length off by {error:.1e} at most")


def _golden(model: Embedder) -> Check:
    import numpy as np

    from siglip2_jax.cli.golden import LOGITS, TOLERANCE, golden_logits

    name = "published logits"
    expected = LOGITS.get(model.variant.name) if model.variant else None
    if expected is None:
        return Check(name, None, f"none are published for this model, only for {', '.join(LOGITS)}")
    if model.tokenizer is None:
        return Check(name, None, "need the Gemma tokenizer; pass --tokenizer")
    logits = golden_logits(model)
    error = float(np.max(np.abs(logits - expected)))
    if np.allclose(logits, expected, atol=TOLERANCE, rtol=TOLERANCE):
        return Check(name, True, f"21 logits agree, off by {error:.1e} at most")
    return Check(
        name,
        False,
        f"off by {error:.3g} at most (tolerance {TOLERANCE}): not the released weights or not "
        "Gemma's tokenizer; pass --no-golden if the weights were trained further",
    )
