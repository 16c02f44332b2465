"""Decoding methods, and the programs that run them."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Literal, get_args

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from siglip2_jax.models.beam import beam
from siglip2_jax.models.compute import Compute
from siglip2_jax.models.decoder import DecoderConfig
from siglip2_jax.models.generate import (
    Generated,
    Prompts,
    Vocabulary,
    abstract_decoder,
    greedy,
    sample,
)
from siglip2_jax.models.siglip2 import Params

Method = Literal["greedy", "beam", "sample"]


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """Decoding method and its settings.

    Attributes:
      method: "greedy" takes the likeliest token each time, "beam" searches for the likeliest
        sequence, "sample" draws.
      beams: of "beam": sequences in play.
      temperature: of "sample": what logits are divided by; 0 is "greedy".
      top_p: of "sample": draw among the fewest tokens that have this probability together; 0 to 1.
      seed: of "sample": from it and from an image's place in the call follow the image's draws.

    Raises:
      ValueError: a value is out of its range.
    """

    method: Method = "greedy"
    beams: int = 4
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ValueError(f"method is {self.method!r}; expected 'greedy', 'beam' or 'sample'")
        if self.beams < 1:
            raise ValueError(f"beams is {self.beams}; it must be at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; it must be at least 0")
        if not 0 <= self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be from 0 to 1")


class Writer:
    """A decoder as programs: one for every method and shape of a batch."""

    def __init__(self, config: DecoderConfig, vocabulary: Vocabulary, dtype: str):
        graphdef, _ = abstract_decoder(config, Compute(dtype=dtype))

        # On TPU float32 products are bfloat16 by default; "highest" makes float32 mean it.
        precise = jax.default_matmul_precision("highest")

        @jax.jit
        @precise
        def likeliest(params: Params, prompts: Prompts) -> Generated:
            return greedy(nnx.merge(graphdef, params), prompts, vocabulary)

        @partial(jax.jit, static_argnames="width")
        @precise
        def search(params: Params, prompts: Prompts, width: int) -> Generated:
            return beam(nnx.merge(graphdef, params), prompts, vocabulary, width)

        @jax.jit
        @precise
        def draw(
            params: Params,
            prompts: Prompts,
            places: Int[Array, " B"],
            key: Key[Array, ""],
            temperature: float | Float[Array, ""],
            top_p: float | Float[Array, ""] | None,
        ) -> Generated:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)
            decoder = nnx.merge(graphdef, params)
            return sample(decoder, prompts, vocabulary, keys, temperature=temperature, top_p=top_p)

        self._likeliest, self._search, self._draw = likeliest, search, draw

    def __call__(
        self,
        params: Params,
        prompts: Prompts,
        places: Int[np.ndarray, " B"],
        generation: GenerationConfig,
    ) -> Generated:
        """Writes about a batch.

        Args:
          params: of the decoder, a nested dict.
          prompts: what is written about.
          places: of each image within the call, for its draws.
          generation: how.
        """
        if generation.method == "greedy":
            return self._likeliest(params, prompts)
        if generation.method == "beam":
            return self._search(params, prompts, generation.beams)
        # All tokens need no sorting.
        top_p = generation.top_p if generation.top_p < 1 else None
        key = jax.random.key(generation.seed)
        return self._draw(params, prompts, places, key, float(generation.temperature), top_p)
