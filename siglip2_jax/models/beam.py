"""Beam search: the likeliest sequence that a decoder can write, as far as a few tries tell."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from siglip2_jax.models.decoder import Cache, Decoder, Memory
from siglip2_jax.models.generate import (
    Generated,
    Prompts,
    Vocabulary,
    given_ids,
    log_probabilities,
)

# Keys and values of the positions of W sequences an image.
_Cache = tuple[Float[Array, "L B W S H C"], Float[Array, "L B W S H C"]]


def beam(
    decoder: Decoder,
    prompts: Prompts,
    vocabulary: Vocabulary,
    width: int,
    length_penalty: float = 0.0,
) -> Generated:
    """Searches for the sequence of the highest score, `width` at a time.

    A sequence ends where its end is among the `width` best ways to go on. The search goes on until
    none of the others can become better than the best that ended; one without room for its end
    counts as it is. A width of 1, without a penalty, writes what `greedy` does.

    Args:
      decoder: the decoder.
      prompts: what is written about.
      vocabulary: what may be written.
      width: W, sequences in play for each image.
      length_penalty: a score counts divided by the number of written tokens to this power; 0 looks
        for the likeliest sequence, more for longer ones.

    Raises:
      ValueError: the prefix is longer than the decoder's positions, or an argument is too small.
    """
    if width < 1 or length_penalty < 0:
        raise ValueError(
            "beam search needs a width of at least 1 and a length_penalty of at least 0, got "
            f"{width} and {length_penalty}"
        )
    search = _Search(
        decoder,
        prompts,
        vocabulary,
        length_penalty,
        prefix=given_ids(decoder, prompts),
        memory=decoder.image_memory(jnp.asarray(prompts.tokens), jnp.asarray(prompts.valid)),
    )
    beams = jax.lax.while_loop(search.goes_on, search.step, search.start(width))
    longest = Generated(beams.ids[:, 0], beams.score[:, 0])
    return _choose(search.rank(longest.score, beams.at) > beams.rank, longest, beams.ended)


class _Beams(NamedTuple):
    """The W best sequences that go on, the best first, and the best of those that ended."""

    at: Int[Array, ""]
    ids: Int[Array, "B W S"]
    score: Float[Array, "B W"]
    cache: _Cache
    ended: Generated
    rank: Float[Array, " B"]


@dataclasses.dataclass(frozen=True)
class _Search:
    decoder: Decoder
    prompts: Prompts
    vocabulary: Vocabulary
    length_penalty: float
    prefix: Int[Array, "B S"]
    memory: Memory

    def start(self, width: int) -> _Beams:
        """One empty sequence an image; there cannot be others until it has grown."""
        batch, length = self.prefix.shape
        ids = jnp.full((batch, width, length), self.decoder.config.pad_id, jnp.int32)
        cache = self.decoder.empty_cache(batch)
        never = jnp.full(batch, -jnp.inf, jnp.float32)
        return _Beams(
            at=jnp.int32(0),
            ids=ids,
            score=jnp.tile(never[:, None], width).at[:, 0].set(0),
            cache=jax.tree.map(lambda x: jnp.repeat(x[:, :, None], width, axis=2), cache),
            ended=Generated(ids[:, 0], never),
            rank=never,
        )

    def rank(self, score: Float[Array, " B"], end: int | Int[Array, ""]) -> Float[Array, " B"]:
        """Length-normalised score of a sequence that ends at a position."""
        return score / jnp.maximum(end - self.prompts.lengths, 1) ** self.length_penalty

    def goes_on(self, beams: _Beams) -> Bool[Array, ""]:
        """True where an image's first sequence can still become the best: scores only fall."""
        length = self.prefix.shape[1]
        within_reach = self.rank(beams.score[:, 0], length)
        return (beams.at < length) & jnp.any(beams.rank < within_reach)

    def step(self, beams: _Beams) -> _Beams:
        """Lets every sequence grow by one token."""
        scores, cache = self._scores(beams)
        width, size = scores.shape[1:]
        # Each of the W sequences has one way to end: W of 2 W go on.
        best, index = jax.lax.top_k(scores.reshape(len(scores), -1), 2 * width)
        parent, token = index // size, (index % size).astype(jnp.int32)
        ids = _pick(beams.ids, parent).at[:, :, beams.at].set(token)
        in_prompt = beams.at < self.prompts.lengths
        ends = (token == self.vocabulary.eos_id) & ~in_prompt[:, None]

        ending = jnp.where(ends & (jnp.arange(2 * width) < width), best, -jnp.inf)
        likeliest = _pick(ids, jnp.argmax(ending, axis=1, keepdims=True))[:, 0]
        ended = Generated(likeliest, jnp.max(ending, axis=1))
        rank = self.rank(ended.score, beams.at + 1)

        going_on = jnp.argsort(ends, axis=1, stable=True)[:, :width]
        parent = _pick(parent, going_on)
        return _Beams(
            at=beams.at + 1,
            ids=_pick(ids, going_on),
            score=_pick(best, going_on),
            cache=jax.tree.map(lambda x: jax.vmap(_pick, (0, None))(x, parent), cache),
            ended=_choose(rank > beams.rank, ended, beams.ended),
            rank=jnp.maximum(rank, beams.rank),
        )

    def _scores(self, beams: _Beams) -> tuple[Float[Array, "B W V"], _Cache]:
        """Scores of all sequences that are one token longer, and the cache of the shorter ones."""

        def extend(before: Array, cache: Cache) -> tuple[Array, Cache]:
            return self.decoder.extend(before, beams.at, cache, self.memory, valid)

        valid = jnp.asarray(self.prompts.valid)
        before = beams.ids[:, :, beams.at - 1]  # at first the last column, which is all pads then
        # Mapped over W, so that the sequences of an image share its keys and values.
        hidden, cache = jax.vmap(extend, in_axes=(1, 2), out_axes=(1, 2))(before, beams.cache)
        scores = log_probabilities(self.decoder, hidden, self.vocabulary)
        in_prompt = beams.at < self.prompts.lengths
        only = jnp.arange(scores.shape[-1]) == self.prefix[:, beams.at, None]
        only = jnp.where(only, 0, -jnp.inf)
        scores = jnp.where(in_prompt[:, None, None], only[:, None], scores)
        return scores + beams.score[..., None], cache


def _pick(x: Float[Array, "B W *_"] | Int[Array, "B W *_"], which: Int[Array, "B K"]) -> Array:
    """Entries `which` of the second axis, in that order."""
    return jax.vmap(lambda row, index: row[index])(x, which)


def _choose(which: Bool[Array, " B"], a: Generated, b: Generated) -> Generated:
    """Sequences of `a` where `which` is true, else of `b`."""
    return Generated(jnp.where(which[:, None], a.ids, b.ids), jnp.where(which, a.score, b.score))
