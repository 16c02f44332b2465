"""A small vision-language model: a projector and a decoder learn captions on a frozen encoder.

    python vlm.py MODEL DATA [--captions captions.jsonl] [--steps 1500] [--seeds 3]

MODEL has an encoder that has learned something, and a tokenizer: a run of `siglip2 train` or
`siglip2 demo`, or a checkpoint. DATA is a directory as `siglip2_jax.data.sources.Folder` reads it,
whose rows have a `split`, "train" or "val".

As in LLaVA (arXiv 2304.08485) image tokens of the last block but one go through two dense layers
and stand before the caption. For each seed the decoder is trained twice, with the image and
without. Losses, and the captions of three images, are on "val", which it never saw.
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from siglip2_jax import Compute, load
from siglip2_jax.data.augment import HorizontalFlip, RandomResizedCrop
from siglip2_jax.data.sources import Folder
from siglip2_jax.models.config import Tower
from siglip2_jax.models.layers import Encoder

WIDTH, DEPTH, PATCHES, BATCH, CAPTIONS, VIEWS = 64, 2, 64, 32, 5, 8


class Vlm(nnx.Module):
    """Image tokens as wide as the decoder's, and a caption behind them."""

    def __init__(self, image_width, vocab_size, length, rngs):
        self.projector = nnx.Sequential(
            nnx.LayerNorm(image_width, rngs=rngs),
            nnx.Linear(image_width, WIDTH, rngs=rngs),
            nnx.gelu,
            nnx.Linear(WIDTH, WIDTH, rngs=rngs),
        )
        self.words = nnx.Embed(vocab_size, WIDTH, rngs=rngs)
        self.positions = nnx.Embed(length, WIDTH, rngs=rngs)
        tower = Tower(width=WIDTH, depth=DEPTH, mlp_dim=4 * WIDTH, num_heads=4)
        self.decoder = Encoder(tower, compute=Compute(scan=False), rngs=rngs)

    def __call__(self, tokens, valid, ids):
        """Logits [B, T, V] of ids [B, T], each by image tokens [B, N, C] and the ids before it."""
        before = jnp.pad(ids[:, :-1], ((0, 0), (1, 0)))
        text = self.words(before) + self.positions(jnp.arange(ids.shape[1]))
        x = jnp.concatenate([self.projector(tokens), text], axis=1)
        place, images = jnp.arange(x.shape[1]), tokens.shape[1]
        exists = jnp.concatenate([valid, jnp.ones(ids.shape, bool)], axis=1)
        attend = (place < images) | (place <= place[:, None])  # the text is causal
        return self.words.attend(self.decoder(x, attend & exists[:, None])[:, images:])


def read(model, folder, views=0):
    """Examples; their image tokens [n, N, C], which of these exist [n, N], ids [n, CAPTIONS, T].

    With `views`, each image comes so many times, in random crops, mirrored or not.
    """
    opened, rng = folder.open(), np.random.default_rng(0)
    examples = [opened[i] for i in range(len(opened))] * max(views, 1)

    def view(example):
        example = {**example, "image": model.preprocess.open(example["image"])}
        for transform in (RandomResizedCrop((0.5, 1.0)), HorizontalFlip()) if views else ():
            example = transform(example, rng)
        return example["image"]

    images = model.tokens_for_vlm(map(view, examples), max_num_patches=PATCHES)
    counts = np.array([x.tokens.shape[1] for x in images])
    valid = np.arange(counts.max()) < counts[:, None]
    tokens = np.zeros((*valid.shape, images[0].tokens.shape[2]), np.float32)
    tokens[valid] = np.concatenate([x.tokens[0] for x in images])
    texts = [x["captions"][k % len(x["captions"])] for x in examples for k in range(CAPTIONS)]
    return examples, (tokens, valid, model.tokenizer(texts).ids.reshape(len(images), CAPTIONS, -1))


@partial(jax.jit, static_argnums=0)
def predict(graphdef, params, *batch):
    """Logits; see `Vlm`."""
    return nnx.merge(graphdef, params)(*batch)


@partial(jax.jit, static_argnums=0)
def losses(graphdef, params, tokens, valid, ids):
    """Nats of each id [B, T], 0 for padding."""
    logits = predict(graphdef, params, tokens, valid, ids)
    return (ids != 0) * optax.softmax_cross_entropy_with_integer_labels(logits, ids)


def optimizer_for(steps):
    """AdamW, warmed up and then cooled down."""
    schedule = optax.warmup_cosine_decay_schedule(0, 3e-3, steps // 10, steps)
    return optax.adamw(schedule, weight_decay=0.1)


@partial(jax.jit, static_argnums=(0, 1))
def step(graphdef, steps, params, state, tokens, valid, ids):
    """One of so many steps."""

    def mean(params):
        return jnp.sum(losses(graphdef, params, tokens, valid, ids)) / jnp.sum(ids != 0)

    updates, state = optimizer_for(steps).update(jax.grad(mean)(params), state, params)
    return optax.apply_updates(params, updates), state


def train(graphdef, params, tokens, valid, ids, *, steps, seed):
    """Parameters after steps on random captions of random images."""
    state, rng = optimizer_for(steps).init(params), np.random.default_rng(seed)
    for _ in range(steps):
        i, k = rng.integers(len(ids), size=BATCH), rng.integers(CAPTIONS, size=BATCH)
        params, state = step(graphdef, steps, params, state, tokens[i], valid[i], ids[i, k])
    return params


def evaluate(graphdef, params, tokens, valid, ids):
    """Nats a token of each image's captions [n]."""
    batches = [(graphdef, params, tokens, valid, ids[:, k]) for k in range(CAPTIONS)]
    nats = sum(np.sum(losses(*batch), axis=1) for batch in batches)
    return nats / np.sum(ids != 0, axis=(1, 2))


def write(graphdef, params, tokens, valid, length):
    """The likeliest id after the other, up to `length`."""
    ids = np.zeros((len(tokens), length), np.int32)
    for k in range(length):
        logits = predict(graphdef, params, tokens, valid, ids)
        ids[:, k] = np.argmax(logits[:, k], axis=1)
    return ids


def main(arguments=None):
    """Trains, and prints what the image is worth."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--captions", default="captions.jsonl")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args(arguments)
    model = load(args.model)
    folders = (Folder(args.data, args.captions, where=(("split", x),)) for x in ("train", "val"))
    _, seen = read(model, next(folders), VIEWS)
    examples, unseen = read(model, next(folders))
    sizes = seen[0].shape[2], model.tokenizer.vocab_size, model.tokenizer.length
    rows, texts = [], []
    for seed in range(args.seeds):
        graphdef, start = nnx.split(Vlm(*sizes, nnx.Rngs(seed)))
        row, texts = [], []
        for blind in (False, True):
            data, new = (
                (x[:, :0], v[:, :0], ids) if blind else (x, v, ids) for x, v, ids in (seen, unseen)
            )
            params = train(graphdef, start, *data, steps=args.steps, seed=seed)
            row.append(evaluate(graphdef, params, *new))
            if not blind:
                others = (np.roll(x, 1, axis=0) for x in new[:2])
                row.append(evaluate(graphdef, params, *others, new[2]))
            first = write(graphdef, params, *(x[:3] for x in new[:2]), model.tokenizer.length)
            texts.append(model.tokenizer.decode(first))
        rows.append(row)
        print(f"seed {seed}:", *(f"{x.mean():.3f}" for x in row), flush=True)
    image, other, none = np.mean(rows, axis=0)
    print(f"nats a token of {len(image)} unseen images, mean of {args.seeds} seeds:")
    print(f"  with the image {image.mean():.3f}, with another one {other.mean():.3f}, ", end="")
    print(f"without {none.mean():.3f}")
    gain = none - image
    error = 1.96 * gain.std(ddof=1) / len(gain) ** 0.5
    print(f"  gain {gain.mean():.3f} +- {error:.3f} (95 %), on {np.mean(gain > 0):.0%} of images")
    for example, *captions in zip(examples, *texts, strict=False):
        print(example["name"], *captions, sep="\n  ")
    return gain


if __name__ == "__main__":
    main()
