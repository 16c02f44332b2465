"""Short sequences laid side by side in rows that fill the tiles of a TPU's memory.

Where rows do not fill tiles of 16 tokens, products run on padding too, and XLA copies what they
give for every kernel. A row of four local views of 36 tokens fills nine tiles.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from siglip2_jax.models.kernels.attention import AttentionImpl
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
    (images, length), on_tpu = x.shape[:2], platform() == "tpu"
    is_kernel = impl == "pallas" or (impl == "auto" and on_tpu and x.dtype == jnp.bfloat16)
    if not is_kernel or not length % _TILE or (valid is not None and valid.ndim == 3):
        return None
    if has_mesh():
        images //= jax.sharding.get_abstract_mesh().size
    rows = [Rows(n, length) for n in range(1, _ROW // length + 1) if images % n == 0]
    return min(rows, key=lambda x: x.padding / x.sequences, default=None)
