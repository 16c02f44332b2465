"""Tokens of sequences in the rows that a TPU computes with fastest.

Where rows do not fill tiles of 16 tokens, products run on padding too, and XLA copies what they
give for every kernel: short sequences are laid side by side. A row of four local views of 36 tokens
fills nine tiles. Where rows fill no groups of 128 tokens, other rows run faster in all but
attention.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from siglip2_jax.models.kernels.attention import AttentionImpl
from siglip2_jax.models.kernels.products import LANES
from siglip2_jax.models.kernels.score_blocks import Shape
from siglip2_jax.sharding import has_mesh, platform, reshape_rows

_TILE = 16  # rows of bfloat16
_ROW = 160
"""Tokens: in a longer row, sequences side by side cost more scores than they save, and padding one
sequence gains nothing (196 tokens)."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of sequences of one length, with padding behind the last.

    Attributes:
      sequences: in a row.
      length: of a sequence, in tokens.
    """

    sequences: int
    length: int

    @property
    def padding(self) -> int:
        """Tokens of a row that belong to no sequence."""
        return -self.sequences * self.length % _TILE

    def pack(self, x: Shaped[Array, "B N *D"]) -> Shaped[Array, "R M *D"]:
        """Rows of sequences; padding is zero."""
        shape = (x.shape[0] // self.sequences, self.sequences * self.length, *x.shape[2:])
        x = reshape_rows(x, shape)
        return jnp.pad(x, [(0, 0), (0, self.padding)] + [(0, 0)] * (x.ndim - 2))

    def unpack(self, x: Shaped[Array, "R M *D"]) -> Shaped[Array, "B N *D"]:
        """Sequences of rows."""
        x = x[:, : self.sequences * self.length]
        return reshape_rows(x, (x.shape[0] * self.sequences, self.length, *x.shape[2:]))


def arrange(x: Shaped[Array, "B N D"], valid: Array | None, impl: AttentionImpl) -> Rows | None:
    """Rows in which a tower runs fastest; None leaves each sequence as it is.

    Args:
      x: tokens of the sequences.
      valid: which exist.
      impl: as for `attend`; programs other than the kernel for short sequences gain nothing.
    """
    length, on_tpu = x.shape[1], platform() == "tpu"
    is_kernel = impl == "pallas" or (impl == "auto" and on_tpu and x.dtype == jnp.bfloat16)
    if not is_kernel or not length % _TILE or (valid is not None and valid.ndim == 3):
        return None
    images = _images_of_a_device(x)
    rows = [Rows(n, length) for n in range(1, _ROW // length + 1) if images % n == 0]
    return min(rows, key=lambda x: x.padding / x.sequences, default=None)


def in_whole_rows(x: Shaped[Array, "*B D"]) -> Shaped[Array, "*R D"]:
    """Tokens of sequences in rows of 256 or 128 on TPU, where they fill such rows.

    Beside products whose rows are others XLA writes what GELU gives to HBM, rather than to compute
    it where it is read: a block takes up to a tenth longer, and keeps a third more memory for the
    backward pass. Tokens of a row need not be of one sequence.
    """
    known = all(isinstance(n, int) for n in x.shape)
    if x.ndim != 3 or not known or x.shape[1] % LANES == 0 or platform() != "tpu":
        return x
    length = math.gcd(_images_of_a_device(x) * x.shape[1], 2 * LANES)
    if length % LANES:
        return x
    return reshape_rows(x, (x.shape[0] * x.shape[1] // length, length, x.shape[2]))


def _images_of_a_device(x: Array) -> int:
    return x.shape[0] // jax.sharding.get_abstract_mesh().size if has_mesh() else x.shape[0]


def in_sequences(
    arrays: list[Shaped[Array, "R M D"]], sequences: tuple[int, int], heads: int
) -> list[Shaped[Array, "B N D"]]:
    """Queries, keys and values that lie in other rows, for the kernel.

    Args:
      arrays: the three.
      sequences: B and N.
      heads: side by side in D.
    """
    like = jax.ShapeDtypeStruct((*sequences, heads, arrays[0].shape[2] // heads), arrays[0].dtype)
    if not Shape(like, like, None).packed:
        return [_reshape(x, sequences) for x in arrays]
    return _reshape_together(arrays, sequences)


def _reshape(x: Array, rows: tuple[int, ...]) -> Array:
    return reshape_rows(x, (*rows, x.shape[2]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _reshape_together(arrays: list[Array], rows: tuple[int, int]) -> list[Array]:
    return [_reshape(x, rows) for x in arrays]


def _forward(arrays: list[Array], rows: tuple[int, int]) -> tuple[list[Array], tuple[int, ...]]:
    return _reshape_together(arrays, rows), arrays[0].shape[:2]


def _backward(
    rows: tuple[int, int], was: tuple[int, ...], cotangents: list[Array]
) -> tuple[list[Array]]:
    # They are parts of one array, and become one again: between, only that may be reshaped.
    whole = _reshape(jnp.concatenate(cotangents, -1), was)
    return (jnp.split(whole, len(cotangents), -1),)


_reshape_together.defvjp(_forward, _backward)
