"""`siglip2 demo`: the whole path on photos that ship with the package, without a network."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from siglip2_jax.cli.options import positive

if TYPE_CHECKING:
    from siglip2_jax.inference import Embedder


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "demo",
        help="embed the photos that ship with the package; write a similarity sheet",
        description="Writes a freshly initialised tiny model to a checkpoint, loads it, embeds "
        "shipped photos and captions, and draws every photo against every caption. The model is "
        "untrained, so the sheet shows the path, not understanding.",
        epilog="example: siglip2 demo --out sheet.html",
    )
    parser.add_argument("--out", type=Path, default=Path("siglip2_demo.html"))
    parser.add_argument("--photos", type=positive, default=16, help="how many (default: 16)")
    parser.add_argument("--seed", type=int, default=0, help="of the model (default: 0)")
    parser.add_argument("--json", action="store_true", help="print a summary as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Embeds, writes the sheet, prints a summary."""
    import numpy as np

    from siglip2_jax.data.files import write_whole
    from siglip2_jax.demo import shipped_examples
    from siglip2_jax.evals.sheet import similarity_sheet
    from siglip2_jax.preprocess.decode import decode
    from siglip2_jax.progress import progress

    examples = shipped_examples()[: args.photos]
    model = tiny_model(args.seed)
    images = []
    with progress("photos") as update:
        for row in model.stream_images([x.image for x in examples], batch_size=8):
            images.append(row)
            update(len(images), len(examples))
    captions = [x.captions[0] for x in examples]
    texts = model.embed_texts(captions)
    cosines = np.stack(images) @ texts.T
    summary = _summary(model, cosines)
    page = similarity_sheet(
        [decode(x.image) for x in examples],
        captions,
        cosines,
        title="SigLIP 2 in JAX: similarity sheet",
        summary=f"Cosine of {len(examples)} photos and their captions under a tiny NaFlex model "
        "with random weights: the outlined pairs belong together, and only training can tell.",
        credits=[x.credit for x in examples],
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(args.out, page.encode())
    summary["sheet"] = str(args.out)
    if args.json:
        print(json.dumps(summary, indent=2))
    else:
        print(
            f"embedded {summary['photos']} photos and captions with a tiny untrained model "
            f"({summary['parameters']:,} parameters); wrote {args.out}"
        )


def tiny_model(seed: int) -> Embedder:
    """A freshly initialised small NaFlex model, sent through a checkpoint file and `load`."""
    import tempfile

    import jax

    from siglip2_jax import load
    from siglip2_jax.demo import TOKENIZER, tiny_config
    from siglip2_jax.inference import Embedder
    from siglip2_jax.models.siglip2 import init_params
    from siglip2_jax.preprocess.image import ImagePreprocessor
    from siglip2_jax.preprocess.tokenizer import Tokenizer

    config = tiny_config()
    preprocess = ImagePreprocessor(patch_size=config.vision.patch_size, image_size=None)
    fresh = Embedder(
        config, init_params(config, jax.random.key(seed)), preprocess, Tokenizer.load(TOKENIZER)
    )
    with tempfile.TemporaryDirectory() as directory:
        fresh.save(Path(directory) / "tiny", "orbax")
        return load(Path(directory) / "tiny")


def _summary(model: Embedder, cosines: Any) -> dict[str, Any]:
    """Counts, and where each photo's own caption ranks (chance: the middle)."""
    import jax
    import numpy as np

    own = np.diagonal(cosines)
    return {
        "photos": len(cosines),
        "parameters": sum(x.size for x in jax.tree.leaves(model.params)),
        "recall_at_1": float(np.mean(own >= cosines.max(axis=1))),
    }
