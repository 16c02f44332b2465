"""Execution options of blocks: dtype, loop or unrolled, kernels, what is computed again."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
from jaxtyping import Array

from siglip2_jax.models.kernels.attention import AttentionImpl
from siglip2_jax.models.kernels.layer_norm import NormImpl

OfAllBlocks = Literal["none", "full", "dots"] | tuple[str, ...]
Remat = OfAllBlocks | float
ACTIVATIONS = ("qkv", "attn_out", "x_mid", "mlp_pre")
"""Activations of a block that the backward pass can find in memory, by name."""


@dataclasses.dataclass(frozen=True)
class Compute:
    """Execution options (dtype, scan, remat, kernels); they do not affect parameters.

    Attributes:
      dtype: of matrix products in the towers, "float32" or "bfloat16".
      scan: run the blocks of a tower as a loop over stacked parameters; False unrolls them, which
        compiles slower and runs faster.
      remat: what the backward pass computes again: "none", "full" (keep only each block's input),
        "dots" (keep matrix products), names of the activations to keep, out of `ACTIVATIONS`, or
        the share of blocks, from the first one on, that are as with "full", the others as with
        "none".
      remat_up_to: in place of `remat` for sequences of at most so many tokens, as pairs from the
        shortest up: where a run has several lengths, each keeps what fits.
      attention: which program computes attention in the towers, by name or as a function; see
        `attention.attend`.
      norm: which computes LayerNorm in their blocks; see `layer_norm.branch`.
    """

    dtype: str = "float32"
    scan: bool = True
    remat: Remat = "none"
    remat_up_to: tuple[tuple[int, Remat], ...] = ()
    attention: AttentionImpl = "auto"
    norm: NormImpl = "auto"

    def __post_init__(self) -> None:
        for remat in (self.remat, *(remat for _, remat in self.remat_up_to)):
            if isinstance(remat, int | float):
                if not 0 <= remat <= 1:
                    raise ValueError(
                        f"Compute.remat is {remat:g}, expected a share of the blocks from 0 to 1"
                    )
            elif not isinstance(remat, str) and (unknown := set(remat) - set(ACTIVATIONS)):
                raise ValueError(
                    f"Compute.remat names {min(unknown)!r}, which blocks have not; expected some "
                    f"of {', '.join(ACTIVATIONS)}"
                )
        lengths = [length for length, _ in self.remat_up_to]
        if lengths != sorted(set(lengths)) or min(lengths, default=1) < 1:
            raise ValueError(
                "Compute.remat_up_to must have lengths from 1 up in growing order, got "
                f"{self.remat_up_to}"
            )

    def at_length(self, length: Any) -> Compute:
        """The options for sequences of so many tokens; a symbolic number counts as a long one."""
        known = self.remat_up_to if isinstance(length, int) else ()
        remat = next((remat for most, remat in known if length <= most), self.remat)
        return dataclasses.replace(self, remat=remat, remat_up_to=())


Layer = Callable[[Array, Any], tuple[Array, None]]


def run_blocks(layer: Layer, x: Array, blocks: Any, compute: Compute) -> Array:
    """Runs tokens through stacked blocks.

    Args:
      layer: runs one block, given as a slice of `blocks`.
      x: what the first block reads.
      blocks: a pytree whose leaves have a leading depth axis.
      compute: as a loop or unrolled, and what the backward pass computes again.

    Returns:
      What the last block gives.
    """
    depth = jax.tree.leaves(blocks)[0].shape[0]
    for remat, first, last in _parts(compute.remat, depth):
        run = _rematerialised(layer, remat, compute.scan)
        if compute.scan:
            part = jax.tree.map(lambda leaf, first=first, last=last: leaf[first:last], blocks)
            x = jax.lax.scan(run, x, part)[0]
        else:
            for i in range(first, last):
                x, _ = run(x, jax.tree.map(lambda leaf, i=i: leaf[i], blocks))
    return x


def _parts(remat: Remat, depth: int) -> list[tuple[OfAllBlocks, int, int]]:
    """Runs of blocks under one policy: the policy, the first block, and the one after the last.

    Of a share, the first blocks are computed again: when their turn comes, the backward pass has
    freed what the later ones kept.
    """
    if not isinstance(remat, int | float):
        return [(remat, 0, depth)]
    again = round(remat * depth)
    parts: list[tuple[OfAllBlocks, int, int]] = [("full", 0, again), ("none", again, depth)]
    return [part for part in parts if part[1] < part[2]]


def _rematerialised(layer: Layer, remat: OfAllBlocks, scan: bool) -> Layer:
    """`layer` under one policy for all blocks."""
    policies = jax.checkpoint_policies
    # In a loop the passes are apart; unrolled, XLA would merge them and keep everything.
    again = functools.partial(jax.checkpoint, layer, prevent_cse=not scan)
    match remat:
        case "none":
            return layer
        case "full":
            return again()
        case "dots":
            return again(policy=policies.dots_saveable)
    return again(policy=policies.save_only_these_names(*remat))
