"""Captioners whose decoders were never trained but write as they are told."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from inference.samples import noise
from train.runs import Sevens, random_state, run, stage

from siglip2_jax import Captioner
from siglip2_jax.checkpoints.orbax import describe
from siglip2_jax.config import Checkpoints, Optim
from siglip2_jax.data.targets import DecoderTargets
from siglip2_jax.demo import TOKENIZER
from siglip2_jax.inference.embedder import Embedder
from siglip2_jax.models.decoder import DecoderConfig
from siglip2_jax.models.generate import abstract_decoder
from siglip2_jax.models.siglip2 import flatten, unflatten
from siglip2_jax.objectives.caption import Captioning
from siglip2_jax.objectives.sigmoid import Sigmoid
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.preprocess.tokenizer import Tokenizer
from siglip2_jax.sharding import make_mesh
from siglip2_jax.testing import TINY, random_params
from siglip2_jax.train.checkpoint import RunCheckpoints

# The text tower is wide, so that the decoder can tell its positions apart.
MODEL = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, width=64))
DECODER = DecoderConfig(
    width=64, depth=1, mlp_dim=32, num_heads=2, vocab_size=1024, length=40, memory_dim=24
)
SMALL = {"max_num_patches": 16, "batch_size": 4}
TARGETS = DecoderTargets(str(TOKENIZER), length=DECODER.length)
DOG = {"box": [0.1, 0.2, 0.5, 0.75], "phrase": "a Red dog"}
PHOTOS = [noise(20, 40), noise(16, 16), noise(9, 30), noise(50, 4), noise(5, 5)]


def training_ids(task: str, targets=TARGETS, text="", **region) -> list[int]:
    """Ids that a decoder learns, up to its end mark."""
    targets = dataclasses.replace(targets, tasks=(task,))
    example = {"text": text, "fields": {}, "regions": [DOG | region]}
    row = targets(example, np.random.default_rng(0))["fields"]["targets"][task].tolist()
    return row[: row.index(1) + 1]


def parrot(ids: list[int], config: DecoderConfig = DECODER) -> dict:
    """Parameters of a decoder that writes these ids whatever it sees, by position alone."""
    made = {
        path: np.full(x.shape, float(path.endswith("scale")), np.float32)
        for path, x in flatten(abstract_decoder(config)[1]).items()
    }
    rng = np.random.default_rng(0)
    positions = np.sign(rng.standard_normal((config.length, config.width), np.float32))
    made["pos/table"] = positions
    for token, position in zip(ids, positions, strict=False):
        made["out/kernel"][:, token] += position - position.mean()
    return unflatten(jax.tree.map(jnp.asarray, made))


@functools.cache
def embedder(tokenizer: bool = True, **options) -> Embedder:
    words = Tokenizer.load(TOKENIZER) if tokenizer else None
    preprocess = ImagePreprocessor(patch_size=4, image_size=None, **options)
    return Embedder(MODEL, random_params(MODEL), preprocess, words)


@functools.cache
def writes_caption() -> Captioner:
    """Writes the same about everything."""
    ids = training_ids("caption", text="a dog by a Tree")
    return Captioner(embedder(), DECODER, parrot(ids))


def saying(captioner: Captioner, ids: list[int]) -> Captioner:
    """Another with the same programs."""
    other = object.__new__(Captioner)
    other.__dict__ |= captioner.__dict__ | {"params": parrot(ids)}
    return other


@functools.cache
def looks() -> Captioner:
    """Writes what depends on the image."""
    rng, made = np.random.default_rng(0), {}
    for path, x in flatten(abstract_decoder(DECODER)[1]).items():
        scale = x.shape[-2] ** -0.5 if path.endswith("kernel") else 0.1
        scale *= 4 if "cross" in path else 1
        value = rng.standard_normal(x.shape, np.float32) * np.float32(scale)
        made[path] = jnp.asarray(value + np.float32(path.endswith("scale")))
    return Captioner(embedder(), DECODER, unflatten(made))


def save_workdir(workdir: Path, **texts: str) -> None:
    """A run's checkpoint 3, with a decoder for each text that writes it, and an average of it."""
    heads = {name: parrot(training_ids("caption", text=text)) for name, text in texts.items()}
    average = {name: parrot(training_ids("caption", text="averaged")) for name in texts}
    save_heads(workdir, heads, average)


def save_heads(workdir: Path, heads: dict[str, dict], average: dict[str, dict]) -> None:
    """A run's checkpoint 3 with decoders of these parameters."""
    learned = Captioning(depth=DECODER.depth, length=DECODER.length)
    objectives = {"sigmoid": Sigmoid(), **dict.fromkeys(heads, learned)}
    config = run(stage(objectives=objectives, optim=Optim(ema=0.9)), model=MODEL)
    state = random_state(Sevens(config.resolved[0]), make_mesh(1, jax.devices()[:1]), 3)
    trees = {
        "params": random_params(MODEL) | {"heads": heads},
        "ema_params": random_params(MODEL) | {"heads": average},
    }
    checkpoints = RunCheckpoints(workdir, Checkpoints(every=1))
    record = describe(MODEL, config.preprocessing) | {"stage": "main"}
    checkpoints.save(dataclasses.replace(state, **trees), 3, record)
    checkpoints.close()
    Tokenizer.load(TOKENIZER).save(workdir)
