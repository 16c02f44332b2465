"""The two-tower model, and its parameters as a nested dict.

Outside the modules a model is a program (`graphdef`) and a nested dict of arrays: only `jax.jit`,
`jax.grad` and friends act on it. Paths such as `vision/encoder/blocks/attn/query/kernel` are
interface: converters, decay masks, sharding rules and logs use them.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import ModelConfig
from siglip2_jax.models.posemb import grid_size
from siglip2_jax.models.text import TextTower
from siglip2_jax.models.vision import VisionTower
from siglip2_jax.types import ArrayLike, Features, Patches

Params = dict[str, Any]
Model = TypeVar("Model", bound="SigLIP2")


def normalize(x: Float[Array, "*B E"]) -> Float[Array, "*B E"]:
    """Scales vectors to unit length, in float32, as `x / (|x| + 1e-8)`."""
    x = x.astype(jnp.float32)
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-8)


class SigLIP2(nnx.Module):
    """SigLIP 2 (arXiv 2502.14786) and SigLIP (arXiv 2303.15343): two towers, `t` and `b`.

    Attributes:
      t: log of the temperature that multiplies cosines; starts at log 10.
      b: bias added to them; starts at -10.
    """

    def __init__(self, config: ModelConfig, *, compute: Compute | None = None, rngs: nnx.Rngs):
        compute = compute or Compute()
        self.vision = VisionTower(config.vision, compute=compute, rngs=rngs)
        self.text = TextTower(config.text, compute=compute, rngs=rngs)
        self.t = nnx.Param(jnp.asarray(math.log(10.0), jnp.float32))
        self.b = nnx.Param(jnp.asarray(-10.0, jnp.float32))

    @classmethod
    def from_params(
        cls: type[Model], config: ModelConfig, params: Params, *, compute: Compute | None = None
    ) -> Model:
        """A module around parameters that exist: nothing is initialised, JAX arrays are not copied.

        Args:
          config: sizes of the towers.
          params: the parameters, a nested dict.
          compute: how the model runs.
        """
        model = nnx.eval_shape(lambda: cls(config, compute=compute, rngs=nnx.Rngs(0)))
        # A NumPy array would be changed in place by an update of the module.
        return nnx.merge(nnx.graphdef(model), jax.tree.map(jnp.asarray, params))

    def encode_image(
        self,
        image: Patches,
        masked: Bool[Array, "B N"] | None = None,
        mask_token: Float[Array, " D"] | None = None,
    ) -> Features:
        """Patch tokens, pooled vector and unit-length embedding of each image.

        `masked` patches are hidden behind `mask_token`.
        """
        tokens, pooled = self.vision(image, masked, mask_token)
        return Features(
            tokens=tokens,
            pooled=pooled,
            image=normalize(pooled),
            valid=image.valid,
            grid=grid_size(jnp.asarray(image.yx), jnp.asarray(image.valid)),
        )

    def encode_text(self, ids: Int[ArrayLike, "B T"]) -> Float[Array, "B E"]:
        """Unit-length text embeddings."""
        return normalize(self.text(jnp.asarray(ids)))

    def encode(self, image: Patches, ids: Int[ArrayLike, "B T"]) -> Features:
        """Both towers, each run once."""
        return dataclasses.replace(self.encode_image(image), text=self.encode_text(ids))

    def logits(self, image: Float[Array, "I E"], text: Float[Array, "J E"]) -> Float[Array, "I J"]:
        """`exp(t) * cosine + b`; a sigmoid makes it the probability that the pair matches."""
        return jnp.exp(self.t[...]) * (image @ text.T) + self.b[...]


def abstract_model(
    config: ModelConfig, compute: Compute | None = None
) -> tuple[nnx.GraphDef, Params]:
    """The program of a model and the shapes of its parameters; computes nothing.

    Returns:
      `graphdef` for `nnx.merge(graphdef, params)` inside jit, and a nested dict of
      `jax.ShapeDtypeStruct`.
    """
    model = nnx.eval_shape(lambda: SigLIP2(config, compute=compute, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(model)
    return graphdef, nnx.to_pure_dict(state)


def init_params(config: ModelConfig, key: Array) -> Params:
    """Freshly initialised float32 parameters, as a nested dict."""

    @jax.jit  # one program instead of one per tensor
    def init(key: Array) -> Params:
        return nnx.to_pure_dict(nnx.state(SigLIP2(config, rngs=nnx.Rngs(key))))

    return init(key)


def flatten(params: Params) -> dict[str, Any]:
    """`{"text": {"head": {"bias": x}}}` becomes `{"text/head/bias": x}`."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {"/".join(entry.key for entry in path): leaf for path, leaf in leaves}


def unflatten(leaves: dict[str, Any]) -> Params:
    """The inverse of `flatten`."""
    params: Params = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return params
