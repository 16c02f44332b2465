"""`siglip2 demo`: the whole path on images that ship with the package, without a network."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from siglip2_jax.cli.options import any_path, output_file, positive
from siglip2_jax.cli.printing import print_json

if TYPE_CHECKING:
    from etils import epath

    from siglip2_jax.config import TrainConfig
    from siglip2_jax.data.sources import Folder
    from siglip2_jax.inference.embedder import Embedder
    from siglip2_jax.models.config import ModelConfig

SHOWN = 16  # images on the sheet
MAX_NUM_PATCHES = 64
TEXT_LENGTH = 32  # tokens, which cut 3 of the 310 captions; half the work of the usual 64


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "demo",
        help="train a tiny model on the images that ship with the package; about a minute",
        description="Trains a model of about a million parameters on the shipped images and their "
        "captions, loads the checkpoint, and prints how often an image finds its caption before "
        "and after training. The model memorises these images: the demo shows that all parts work, "
        "not quality.",
        epilog="example: siglip2 demo --out sheet.html",
    )
    parser.add_argument(
        "--out",
        type=output_file,
        default="siglip2_demo.html",
        help="page to write (default: siglip2_demo.html)",
    )
    parser.add_argument(
        "--steps", type=positive, default=150, help="number of training steps (default: 150)"
    )
    parser.add_argument(
        "--workdir",
        type=any_path,
        help="directory to keep the run in, or to resume it from (default: none)",
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of the run (default: 0)")
    parser.add_argument("--json", action="store_true", help="print a summary as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Trains, measures, writes the sheet; 143 if SIGTERM stopped it."""
    import tempfile

    from siglip2_jax import load
    from siglip2_jax.data.text import read_rows
    from siglip2_jax.evals.retrieval import Retrieval
    from siglip2_jax.train.distributed import PREEMPTED
    from siglip2_jax.train.loop import train

    config = demo_config(args.steps, args.seed)
    measure = Retrieval(source=_images(), max_num_patches=MAX_NUM_PATCHES)
    before = measure(_untrained(args.seed))
    with tempfile.TemporaryDirectory(prefix="siglip2_demo_") as temporary:
        workdir = args.workdir or any_path(temporary)
        if not train(config, workdir):
            return PREEMPTED
        model = load(workdir)
        losses = [row["loss"] for _, row in read_rows(workdir / "metrics.jsonl")]
    after = measure(model)
    _write_sheet(model, args.out)
    summary = {
        "steps": args.steps,
        "loss": {"first": losses[0], "last": losses[-1]},
        "before": before,
        "after": after,
        "sheet": str(args.out),
    }
    if args.json:
        print_json(summary)
    else:
        print(_sentences(summary))
    return 0


def demo_config(steps: int, seed: int = 0) -> TrainConfig:
    """The demo's run: one stage on the shipped images, with two sequence lengths."""
    from siglip2_jax.config import Checkpoints, Data, Logging, Optim, Schedule, Stage, TrainConfig
    from siglip2_jax.data.lengths import Lengths
    from siglip2_jax.demo import TOKENIZER
    from siglip2_jax.objectives.sigmoid import Sigmoid

    stage = Stage(
        name="demo",
        steps=steps,
        batch_size=32,
        data=Data(source=_images()),
        lengths=Lengths(budgets=(32, MAX_NUM_PATCHES), batch_scale=()),
        objectives={"sigmoid": Sigmoid()},
        optim=Optim(peak_lr=1e-3, schedule=Schedule(warmup=0.1)),
    )
    return TrainConfig(
        model=_model(),
        stages=(stage,),
        tokenizer=str(TOKENIZER),
        checkpoints=Checkpoints(every=max(1, steps // 2), keep_last=1),
        logging=Logging(every=max(1, steps // 30)),
        seed=seed,
    )


def _model() -> ModelConfig:
    """Sizes of the tiny model, for the short captions that ship."""
    import dataclasses

    from siglip2_jax.demo import tiny_config

    config = tiny_config()
    return dataclasses.replace(config, text=dataclasses.replace(config.text, length=TEXT_LENGTH))


def _images() -> Folder:
    from siglip2_jax.data.sources import Folder
    from siglip2_jax.demo import HERE

    return Folder(str(HERE), captions="examples.jsonl", images="photos")


def _untrained(seed: int) -> Embedder:
    """The demo's model with fresh parameters."""
    import jax

    from siglip2_jax.demo import TOKENIZER
    from siglip2_jax.inference.embedder import Embedder
    from siglip2_jax.models.siglip2 import init_params
    from siglip2_jax.preprocess.image import ImagePreprocessor
    from siglip2_jax.preprocess.tokenizer import Tokenizer

    config = _model()
    preprocess = ImagePreprocessor(patch_size=config.vision.patch_size, image_size=None)
    params = init_params(config, jax.random.key(seed))
    return Embedder(config, params, preprocess, Tokenizer.load(TOKENIZER, length=TEXT_LENGTH))


def _write_sheet(model: Embedder, out: epath.Path) -> None:
    """Some images against their captions."""
    from siglip2_jax.cli.sheet import similarity_sheet
    from siglip2_jax.demo import shipped_examples
    from siglip2_jax.outputs import write_whole
    from siglip2_jax.preprocess.decode import decode

    examples = shipped_examples()[:SHOWN]
    captions = [x.captions[0] for x in examples]
    files = [x.image for x in examples]
    images = model.embed_images(files, max_num_patches=MAX_NUM_PATCHES)
    page = similarity_sheet(
        [decode(file) for file in files],
        captions,
        images @ model.embed_texts(captions).T,
        title="SigLIP 2 in JAX: similarity sheet",
        summary=f"Cosine of {len(examples)} images and their captions under a tiny NaFlex model "
        "that was trained on them for a minute: the outlined pairs belong together.",
        credits=[x.credit for x in examples],
    )
    write_whole(out, page)


def _sentences(summary: dict[str, Any]) -> str:
    loss, before, after = summary["loss"], summary["before"], summary["after"]
    rows = [
        f"  {name.replace('_', ' '):18} {value:6.1%} -> {after[name]:6.1%}"
        for name, value in before.items()
    ]
    return "\n".join(
        [
            f"trained {summary['steps']} steps: loss {loss['first']:.2f} -> {loss['last']:.2f}",
            "an image ranks one of its captions first, and a caption its image (before, after):",
            *rows,
            f"wrote {summary['sheet']}",
        ]
    )
