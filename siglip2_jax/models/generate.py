"""Writing with the decoder: the likeliest token each time, or draws; `beam` searches.

A sequence begins with ids that are given, such as those of "cap:", and goes on until the decoder
writes the end mark or its positions are used up. Nothing here depends on what else is in a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from siglip2_jax.models.compute import Compute
from siglip2_jax.models.decoder import Cache, Decoder, DecoderConfig
from siglip2_jax.models.siglip2 import Params
from siglip2_jax.types import ArrayLike, pytree_dataclass

# Colder draws keep a single token, so that the softmax for `top_p` need not be any steeper.
COLDEST = 1e-6


class Vocabulary(NamedTuple):
    """Ids that may be written; the pad never is.

    Attributes:
      eos_id: the end mark.
      size: ids from here on mean nothing; a decoder may have a few more.
    """

    eos_id: int
    size: int


@pytree_dataclass
class Prompts:
    """Image memory and prefix tokens of a generation batch.

    Attributes:
      tokens: image tokens, as the decoder reads them.
      valid: which of them exist; others may hold anything, NaN included.
      prefix: given ids of each sequence, padded on the right with anything.
      lengths: how many of them are given.
    """

    tokens: Float[ArrayLike, "B N M"]
    valid: Bool[ArrayLike, "B N"]
    prefix: Int[ArrayLike, "B P"]
    lengths: Int[ArrayLike, " B"]


class Generated(NamedTuple):
    """Generated sequences and their scores.

    Attributes:
      ids: what was given, what was written and its end mark; then pads. A sequence that had no
        room for the end mark has none. S is the decoder's number of positions.
      score: sum of the natural logarithms of the probabilities of what was written, its end mark
        included; what was given has none.
    """

    ids: Int[Array, "B S"]
    score: Float[Array, " B"]


def abstract_decoder(
    config: DecoderConfig, compute: Compute | None = None
) -> tuple[nnx.GraphDef, Params]:
    """The program of a decoder and the shapes of its parameters; computes nothing.

    Returns:
      `graphdef` for `nnx.merge(graphdef, params)` inside jit, and a nested dict of
      `jax.ShapeDtypeStruct`.
    """
    module = nnx.eval_shape(lambda: Decoder(config, compute=compute, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(module)
    return graphdef, nnx.to_pure_dict(state)


def greedy(decoder: Decoder, prompts: Prompts, vocabulary: Vocabulary) -> Generated:
    """Writes the likeliest token each time.

    Raises:
      ValueError: the prefix is longer than the decoder's positions.
    """
    return _write(decoder, prompts, vocabulary, lambda scores, _: jnp.argmax(scores, axis=-1))


def sample(
    decoder: Decoder,
    prompts: Prompts,
    vocabulary: Vocabulary,
    keys: Key[Array, " B"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
    top_k: int | None = None,
    top_p: float | Float[Array, ""] | None = None,
) -> Generated:
    """Draws each token by its probability; the score is that at temperature 1 of all tokens.

    Args:
      decoder: the decoder.
      prompts: what is written about.
      vocabulary: what may be written.
      keys: one for each sequence.
      temperature: what logits are divided by; 0 always writes the likeliest token.
      top_k: draw among so many of the likeliest tokens only.
      top_p: draw among the fewest tokens whose probabilities (after the above) add up to this
        only: nucleus sampling (arXiv 1904.09751).

    Raises:
      ValueError: the prefix is longer than the decoder's positions.
    """

    def draw(scores: Array, at: Array) -> Array:
        if top_k is not None:
            kept = jax.lax.top_k(scores, min(top_k, scores.shape[-1]))[0]
            scores = jnp.where(scores >= kept[:, -1:], scores, -jnp.inf)
        if top_p is not None:
            steep = jax.nn.softmax(scores / jnp.maximum(temperature, COLDEST))
            scores = jnp.where(_nucleus(steep, top_p), scores, -jnp.inf)

        def noise(key: Array) -> Array:
            return jax.random.gumbel(jax.random.fold_in(key, at), scores.shape[-1:])

        # Draws of a softmax (the Gumbel-max trick), and at temperature 0 the maximum itself.
        return jnp.argmax(scores + temperature * jax.vmap(noise)(keys), axis=-1)

    return _write(decoder, prompts, vocabulary, draw)


def _nucleus(probability: Float[Array, "B V"], top_p: float | Array) -> Bool[Array, "B V"]:
    """The fewest entries that reach `top_p`, always one; of equals, all or none."""
    down = jnp.sort(probability, axis=-1, descending=True)
    before = jnp.cumsum(down, axis=-1) - down
    inside = (before < top_p).at[:, 0].set(True)
    return probability >= jnp.min(jnp.where(inside, down, jnp.inf), axis=-1, keepdims=True)


class _Draft(NamedTuple):
    """Sequences as far as they are written: `at` positions."""

    at: Int[Array, ""]
    ids: Int[Array, "B S"]
    score: Float[Array, " B"]
    done: Bool[Array, " B"]
    cache: Cache


def _write(
    decoder: Decoder,
    prompts: Prompts,
    vocabulary: Vocabulary,
    choose: Callable[[Array, Array], Array],
) -> Generated:
    """Writes one sequence an image; `choose` picks ids [B] by scores [B, V] at a position."""
    pad, (batch, length) = decoder.config.pad_id, (len(prompts.lengths), decoder.config.length)
    valid = jnp.asarray(prompts.valid)
    memory = decoder.image_memory(jnp.asarray(prompts.tokens), valid)
    prefix = given_ids(decoder, prompts)

    def goes_on(draft: _Draft) -> Array:
        return (draft.at < length) & ~jnp.all(draft.done)

    def step(draft: _Draft) -> _Draft:
        at = draft.at
        before = draft.ids[:, at - 1]  # at first the last column, which is all pads then
        hidden, cache = decoder.extend(before, at, draft.cache, memory, valid)
        scores = log_probabilities(decoder, hidden, vocabulary)
        in_prompt = at < prompts.lengths
        token = jnp.where(in_prompt, prefix[:, at], choose(scores, at))
        gained = jnp.take_along_axis(scores, token[:, None], axis=1)[:, 0]
        return _Draft(
            at=at + 1,
            ids=draft.ids.at[:, at].set(jnp.where(draft.done, pad, token)),
            score=draft.score + jnp.where(in_prompt | draft.done, 0, gained),
            done=draft.done | (~in_prompt & (token == vocabulary.eos_id)),
            cache=cache,
        )

    draft = _Draft(
        at=jnp.int32(0),
        ids=jnp.full((batch, length), pad, jnp.int32),
        score=jnp.zeros(batch),
        done=jnp.zeros(batch, bool),
        cache=decoder.empty_cache(batch),
    )
    draft = jax.lax.while_loop(goes_on, step, draft)
    return Generated(draft.ids, draft.score)


def log_probabilities(
    decoder: Decoder, hidden: Float[Array, "*B D"], vocabulary: Vocabulary
) -> Float[Array, "*B V"]:
    """Natural logarithms for the next token, among what may be written; for the rest -inf."""
    logits = decoder.logits(hidden)
    ids = jnp.arange(logits.shape[-1])
    allowed = (ids < vocabulary.size) & (ids != decoder.config.pad_id)
    return jax.nn.log_softmax(jnp.where(allowed, logits, -jnp.inf))


def given_ids(decoder: Decoder, prompts: Prompts) -> Int[Array, "B S"]:
    """The given ids at all of the decoder's positions.

    Raises:
      ValueError: there are more ids than positions.
    """
    room = decoder.config.length - prompts.prefix.shape[1]
    if room < 0:
        raise ValueError(
            f"prefixes have {prompts.prefix.shape[1]} ids, the decoder has "
            f"{decoder.config.length} positions; give shorter ones"
        )
    return jnp.pad(jnp.asarray(prompts.prefix, jnp.int32), ((0, 0), (0, room)))
